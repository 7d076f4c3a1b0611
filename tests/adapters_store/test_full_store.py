"""On a full disk adapters can be deleted, whole and by version, and nothing is left behind."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from adapters_store.store import AdapterStore
from tests.adapters_store.conftest import MakeManifest, MakeTensors


@pytest.fixture
def root(
    store: AdapterStore, make_manifest: MakeManifest, make_tensors: MakeTensors, tmp_path: Path
) -> Path:
    for _ in range(3):
        store.publish("ann", "poet", make_manifest(), make_tensors())
    return tmp_path / "adapters"


def _fill(monkeypatch: pytest.MonkeyPatch, number: int, *, links: bool = True) -> None:
    """Let nothing be written: no new file, and no byte for good."""
    real = Path.open

    def full(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number), "/a/path")

    def opened(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        new = "x" in mode or "w" in mode or "a" in mode
        return full() if new else real(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "mkdir", full)
    if not links:
        monkeypatch.setattr(os, "link", full)


def _nothing_left(root: Path) -> bool:
    return not [*(root / ".staging").iterdir(), *(root / ".trash").iterdir()]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_versions_go_one_by_one_and_the_name_falls_back(
    store: AdapterStore, root: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as disk:
        _fill(disk, number)
        for gone, latest in ((3, 2), (1, 2)):
            assert store.delete("ann", "poet", gone) == [gone]
            assert store.resolve("ann", "poet").version == latest
            assert _nothing_left(root)
        assert store.delete("ann", "poet", 2) == [2]
        assert store.names("ann") == []
        assert _nothing_left(root)


@pytest.mark.parametrize("damage", ["", "no pointer", "rubbish"])
@pytest.mark.parametrize("links", [True, False])
def test_an_adapter_goes_whole(
    store: AdapterStore,
    root: Path,
    links: bool,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
    make_manifest: MakeManifest,
    make_tensors: MakeTensors,
) -> None:
    pointer = root / "ann" / "poet" / "latest"
    if damage == "no pointer":
        pointer.unlink()
    elif damage:
        pointer.write_text("rubbish")
    with monkeypatch.context() as disk:
        _fill(disk, errno.ENOSPC, links=links)
        assert store.delete("ann", "poet") == [1, 2, 3]
        assert store.names("ann") == []
        assert _nothing_left(root)
    again = store.publish("ann", "poet", make_manifest(), make_tensors())
    if links and not damage:
        assert again.version == 4, "numbers are not issued again"
    assert store.resolve("ann", "poet") == again


def test_a_full_disk_keeps_nothing_of_what_is_published(
    store: AdapterStore,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_manifest: MakeManifest,
    make_tensors: MakeTensors,
) -> None:
    with monkeypatch.context() as disk:
        _fill(disk, errno.ENOSPC)
        with pytest.raises(OSError, match="No space left"):
            store.publish("ann", "poet", make_manifest(), make_tensors())
    assert _nothing_left(root)
    assert store.versions("ann", "poet") == [1, 2, 3]
