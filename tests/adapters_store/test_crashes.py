"""Whatever dies when, readers see whole versions only, and no number is issued twice."""

import subprocess
from pathlib import Path

import pytest
import torch

from adapters_store.store import AdapterStore
from adapters_store.store_changes import StoreChanges
from adapters_store.store_errors import AdapterNotFound
from tests.adapters_store.conftest import MakeManifest, MakeTensors
from tests.program import command

REPOSITORY = Path(__file__).parents[2]


def _drill(*arguments: object) -> str:
    started = command("tests.adapters_store.crash_drill", *map(str, arguments))
    return subprocess.run(
        started, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=120
    ).stdout


def _readable(store: AdapterStore) -> list[int]:
    """Check every visible version, and that the ways to see them agree; return the versions."""
    versions = store.versions("ann", "poet")
    assert store.names("ann") == (["poet"] if versions else [])
    for version in versions:
        _, tensors, _ = store.load(store.resolve("ann", "poet", version))
        values = torch.cat([tensors["q.d"], tensors["q.b"]])
        assert len(values) == 5
        assert bool((values == values[0]).all())
    if versions:  # a deletion cut short may leave an older latest, never a missing one
        assert store.resolve("ann", "poet").version in versions
    else:
        with pytest.raises(AdapterNotFound):
            store.resolve("ann", "poet")
    return versions


def test_racing_processes_get_a_version_each(tmp_path: Path) -> None:
    assert _drill("race", tmp_path, 4, 6) == "codes 0 0 0 0\n"
    store = AdapterStore(tmp_path)
    assert _readable(store) == list(range(1, 25))
    assert store.resolve("ann", "poet").version == 24


@pytest.mark.parametrize("action", ["publish", "delete"])
def test_a_kill_at_any_step_leaves_whole_versions_only(
    tmp_path: Path, action: str, make_manifest: MakeManifest, make_tensors: MakeTensors
) -> None:
    report = _drill("kill", tmp_path, action)
    folders = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert report.endswith("last 0\n")
    assert len(folders) >= 8
    seen = []
    for folder in folders:
        store = AdapterStore(folder)
        versions = _readable(store)
        seen.append(versions)
        assert not [*(folder / ".staging").iterdir(), *(folder / ".trash").iterdir()]
        new = store.publish("ann", "poet", make_manifest(), make_tensors())
        assert new.version > max(versions, default=2 if action == "delete" else 0)
        assert store.versions("ann", "poet") == [*versions, new.version]
    stages = [[], [1], [1, 2]] if action == "publish" else [[1, 2], [1], []]
    assert [v for i, v in enumerate(seen) if i == 0 or v != seen[i - 1]] == stages


def test_a_start_does_not_sweep_a_publisher_at_work(
    tmp_path: Path,
    make_manifest: MakeManifest,
    make_tensors: MakeTensors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = AdapterStore(tmp_path)
    commit = StoreChanges.commit

    def restart_first(self: StoreChanges, owner: str, name: str, staged: Path) -> object:
        AdapterStore(tmp_path)
        return commit(self, owner, name, staged)

    monkeypatch.setattr(StoreChanges, "commit", restart_first)
    ref = store.publish("ann", "poet", make_manifest(), make_tensors())
    assert store.load(ref)[0] == make_manifest()
