"""Versions: issued once, whole or absent, found quickly."""

from pathlib import Path

import pytest
import torch

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound, InvalidName
from tests.adapters_store.conftest import MakeManifest, MakeTensors


class Publish:
    """Publish small adapters, each with tensors of its own."""

    def __init__(self, store: AdapterStore, manifest: MakeManifest, tensors: MakeTensors) -> None:
        self._store, self._manifest, self._tensors = store, manifest, tensors

    def __call__(self, owner: str = "ann", name: str = "poet", seed: int = 0) -> AdapterRef:
        return self._store.publish(owner, name, self._manifest(), self._tensors(seed=seed))


@pytest.fixture
def publish(store: AdapterStore, make_manifest: MakeManifest, make_tensors: MakeTensors) -> Publish:
    return Publish(store, make_manifest, make_tensors)


def _leftovers(root: Path) -> list[Path]:
    return [*(root / ".staging").iterdir(), *(root / ".trash").iterdir()]


def test_versions_count_up_and_each_keeps_its_content(
    store: AdapterStore, publish: Publish, make_tensors: MakeTensors, make_manifest: MakeManifest
) -> None:
    refs = [publish(seed=seed) for seed in range(3)]
    assert [str(ref) for ref in refs] == ["poet@1", "poet@2", "poet@3"]
    assert store.versions("ann", "poet") == [1, 2, 3]
    assert store.resolve("ann", "poet") == refs[-1]
    hashes = set()
    for seed, ref in enumerate(refs):
        assert store.resolve("ann", "poet", ref.version) == ref
        manifest, tensors, sha256 = store.load(ref)
        assert manifest == make_manifest()
        assert all(torch.equal(tensors[k], v) for k, v in make_tensors(seed=seed).items())
        hashes.add(sha256)
    assert len(hashes) == 3


def test_open_reads_the_header(store: AdapterStore, publish: Publish) -> None:
    ref = publish()
    stored = store.open(ref)
    manifest, _, sha256 = store.load(ref)
    assert (stored.ref, stored.manifest, stored.sha256) == (ref, manifest, sha256)
    assert stored.size_bytes == stored.path.stat().st_size


def test_owners_are_apart(store: AdapterStore, publish: Publish) -> None:
    assert store.owners() == []
    publish("bob", "cook")
    publish("ann", "poet")
    publish("ann", "cook")
    assert store.owners() == ["ann", "bob"]
    assert store.names("ann") == ["cook", "poet"]
    assert store.names("bob") == ["cook"]
    assert store.names("eve") == []
    with pytest.raises(AdapterNotFound, match="'bob' has no adapter 'poet'"):
        store.resolve("bob", "poet")


def test_an_unknown_version_says_what_exists(store: AdapterStore, publish: Publish) -> None:
    publish()
    with pytest.raises(AdapterNotFound, match=r"no version 7; the latest is 1"):
        store.resolve("ann", "poet", 7)
    with pytest.raises(AdapterNotFound, match=r"poet@7"):
        store.load(AdapterRef("ann", "poet", 7))
    with pytest.raises(AdapterNotFound, match=r"poet@7"):
        store.open(AdapterRef("ann", "poet", 7))
    assert store.versions("ann", "sage") == []


@pytest.mark.parametrize("bad", ["", ".", "..", "../x", "a/b", ".trash", "a\0b", "x" * 65, "a."])
def test_names_cannot_leave_the_root(
    store: AdapterStore, make_manifest: MakeManifest, make_tensors: MakeTensors, bad: str
) -> None:
    for owner, name in ((bad, "poet"), ("ann", bad)):
        with pytest.raises(InvalidName):
            store.publish(owner, name, make_manifest(), make_tensors())
        with pytest.raises(InvalidName):
            store.resolve(owner, name)
        with pytest.raises(InvalidName):
            store.versions(owner, name)
        with pytest.raises(InvalidName):
            store.delete(owner, name)
    with pytest.raises(InvalidName):
        store.names(bad)


def test_deleting_the_latest_falls_back_and_its_number_is_not_reused(
    store: AdapterStore, publish: Publish
) -> None:
    for seed in range(3):
        publish(seed=seed)
    store.delete("ann", "poet", 3)
    assert store.resolve("ann", "poet").version == 2
    assert publish().version == 4
    store.delete("ann", "poet", 2)
    assert store.versions("ann", "poet") == [1, 4]
    assert store.resolve("ann", "poet").version == 4
    with pytest.raises(AdapterNotFound):
        store.delete("ann", "poet", 2)


@pytest.mark.parametrize("one_by_one", [True, False])
def test_an_adapter_deleted_wholly_is_gone_but_its_numbers_stay_used(
    store: AdapterStore, publish: Publish, one_by_one: bool, tmp_path: Path
) -> None:
    publish()
    publish()
    for version in (1, 2) if one_by_one else (None,):
        store.delete("ann", "poet", version)
    assert store.names("ann") == [] == store.owners()
    assert store.versions("ann", "poet") == []
    with pytest.raises(AdapterNotFound):
        store.resolve("ann", "poet")
    assert not _leftovers(tmp_path / "adapters")
    assert publish().version == 3
    assert AdapterStore(tmp_path / "adapters").versions("ann", "poet") == [3]


def test_a_failed_publication_leaves_nothing(
    store: AdapterStore, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="float32"):
        store.publish("ann", "poet", make_manifest(), {"d": torch.zeros(2, dtype=torch.int8)})
    assert store.names("ann") == []
    assert not _leftovers(tmp_path / "adapters")


def test_leftovers_are_swept_at_the_next_start(
    store: AdapterStore, publish: Publish, tmp_path: Path
) -> None:
    publish()
    for folder in (".staging", ".trash"):
        left = tmp_path / "adapters" / folder / "dead"
        left.mkdir()
        (left / "adapter.safetensors").write_bytes(b"half")
        (tmp_path / "adapters" / folder / "file").write_bytes(b"half")
    again = AdapterStore(tmp_path / "adapters")
    assert not _leftovers(tmp_path / "adapters")
    assert again.versions("ann", "poet") == [1]


@pytest.mark.parametrize("text", ["", "1", "x y", "1 2 3"])
def test_a_damaged_pointer_is_named(
    store: AdapterStore, publish: Publish, tmp_path: Path, text: str
) -> None:
    publish()
    pointer = tmp_path / "adapters" / "ann" / "poet" / "latest"
    pointer.write_text(text)
    with pytest.raises(AdapterCorrupt, match=str(pointer)):
        store.resolve("ann", "poet")


@pytest.mark.parametrize("rubbish", [b"", b"1", b"\xff\xfe"])
def test_what_has_a_damaged_pointer_can_be_deleted_whole(
    store: AdapterStore, publish: Publish, tmp_path: Path, rubbish: bytes
) -> None:
    publish(), publish()
    (tmp_path / "adapters" / "ann" / "poet" / "latest").write_bytes(rubbish)
    with pytest.raises(AdapterCorrupt, match="delete the adapter 'poet' whole"):
        store.delete("ann", "poet", 1)
    assert store.delete("ann", "poet") == [1, 2]
    assert store.names("ann") == []
    assert publish().version == 3, "numbers are not issued again"


def test_a_damaged_file_is_named(store: AdapterStore, publish: Publish) -> None:
    ref = publish()
    path = store.path(ref)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(AdapterCorrupt, match=str(path)):
        store.load(ref)


def test_what_stands_aside_is_never_what_the_bare_name_means(
    store: AdapterStore, publish: Publish, make_manifest: MakeManifest, make_tensors: MakeTensors
) -> None:
    def aside() -> AdapterRef:
        return store.publish("ann", "poet", make_manifest(), make_tensors(seed=9), latest=False)

    assert str(aside()) == "poet@1"
    with pytest.raises(AdapterNotFound, match="has only checkpoints"):
        store.resolve("ann", "poet")
    with pytest.raises(AdapterNotFound, match="the latest is not there yet"):
        store.resolve("ann", "poet", 7)
    assert [str(aside()), str(publish()), str(aside()), str(publish()), str(aside())] == [
        f"poet@{number}" for number in range(2, 7)
    ]
    assert (store.versions("ann", "poet"), store.aside("ann", "poet")) == (
        [1, 2, 3, 4, 5, 6],
        [1, 2, 4, 6],
    )
    assert store.resolve("ann", "poet", 4).version == 4
    for gone, latest in ((6, 5), (5, 3)):
        store.delete("ann", "poet", gone)
        assert store.resolve("ann", "poet").version == latest
    store.delete("ann", "poet", 3)
    with pytest.raises(AdapterNotFound, match="only checkpoints"):
        store.resolve("ann", "poet")
    store.delete("ann", "poet")
    assert store.versions("ann", "poet") == []
    assert store.names("ann") == []
    assert str(publish()) == "poet@7"
