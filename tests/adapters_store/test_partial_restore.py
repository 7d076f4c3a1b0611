"""Folders that a restore has left halfway, or that others have put things into."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound
from tests.adapters_store.conftest import MakeManifest, MakeTensors

Damage = Callable[[Path], object]


@pytest.fixture
def poet(
    store: AdapterStore, make_manifest: MakeManifest, make_tensors: MakeTensors, tmp_path: Path
) -> Path:
    """The folder of an adapter with two versions; another one stands beside it."""
    for name in ("poet", "poet", "sage"):
        store.publish("ann", name, make_manifest(), make_tensors())
    return tmp_path / "adapters" / "ann" / "poet"


def _make_file_of(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    folder.write_text("a file")


def _lose_versions(folder: Path) -> None:
    for version in ("1", "2"):
        (folder / version).rename(folder.parent.parent / f"away-{version}")


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_dead_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("away")


DAMAGES: dict[str, Damage] = {
    "no pointer": lambda folder: (folder / "latest").unlink(),
    "an empty pointer": lambda folder: (folder / "latest").write_bytes(b""),
    "a pointer of rubbish": lambda folder: (folder / "latest").write_bytes(b"\xff" * 10_000),
    "a pointer to what was never issued": lambda folder: (folder / "latest").write_text("5 2\n"),
    "a pointer to what is not there": lambda folder: (folder / "latest").write_text("3 3\n"),
    "a pointer that is a folder": lambda folder: _replace_by_folder(folder / "latest"),
    "a pointer that leads nowhere": lambda folder: _replace_by_dead_link(folder / "latest"),
    "no weights": lambda folder: (folder / "2" / "adapter.safetensors").unlink(),
    "no versions": _lose_versions,
    "a file in its place": _make_file_of,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_what_is_damaged_is_told_and_can_be_deleted_and_published_again(
    store: AdapterStore,
    poet: Path,
    how: str,
    make_manifest: MakeManifest,
    make_tensors: MakeTensors,
) -> None:
    DAMAGES[how](poet)
    with pytest.raises(AdapterCorrupt, match=str(poet)) as told:
        store.resolve("ann", "poet")
    assert "delete" in str(told.value)
    assert store.resolve("ann", "sage").version == 1
    assert "sage" in store.names("ann")
    store.delete("ann", "poet")
    assert store.names("ann") == ["sage"]
    with pytest.raises(AdapterNotFound):
        store.resolve("ann", "poet")
    with pytest.raises(AdapterNotFound):
        store.delete("ann", "poet")
    ref = store.publish("ann", "poet", make_manifest(), make_tensors())
    assert store.resolve("ann", "poet") == ref
    if how not in ("no versions", "a file in its place"):
        assert ref.version >= 3, "numbers are not issued again"


def test_nothing_is_published_behind_a_lost_pointer(
    store: AdapterStore, poet: Path, make_manifest: MakeManifest, make_tensors: MakeTensors
) -> None:
    (poet / "latest").unlink()
    with pytest.raises(AdapterCorrupt, match="restore it, or delete the adapter 'poet' whole"):
        store.publish("ann", "poet", make_manifest(), make_tensors())
    assert not list((poet.parent.parent / ".staging").iterdir())
    (poet / "latest").write_text("2 2\n")
    assert store.publish("ann", "poet", make_manifest(), make_tensors()).version == 3


def test_deleting_a_version_that_is_lost_mends_the_name(store: AdapterStore, poet: Path) -> None:
    (poet / "2").rename(poet.parent.parent / "away")
    with pytest.raises(AdapterCorrupt, match="restore it, or delete poet@2"):
        store.resolve("ann", "poet")
    assert store.delete("ann", "poet", 2) == [2]
    assert store.resolve("ann", "poet").version == 1


def test_a_version_without_weights_can_be_deleted(store: AdapterStore, poet: Path) -> None:
    (poet / "1" / "adapter.safetensors").unlink()
    with pytest.raises(AdapterCorrupt, match="is missing"):
        store.resolve("ann", "poet", 1)
    assert store.delete("ann", "poet", 1) == [1]
    assert store.versions("ann", "poet") == [2]


def test_what_others_left_is_no_adapter(
    store: AdapterStore, poet: Path, make_manifest: MakeManifest, make_tensors: MakeTensors
) -> None:
    for name in ("__MACOSX", "a b", "x" * 65, "lost+found", ".DS_Store"):
        (poet.parent / name).mkdir()
        (poet.parent.parent / name).mkdir()
        (poet / name).mkdir()
    for name in ("01", "٣", "1" * 30, "-1"):
        (poet / name).mkdir()
    (poet.parent / "notes.txt").write_text("x")
    (poet.parent.parent / ".bases" / "folder").mkdir()
    assert store.owners() == ["ann"]
    assert store.names("ann") == ["poet", "sage"]
    assert store.versions("ann", "poet") == [1, 2]
    assert store.publish("ann", "poet", make_manifest(), make_tensors()).version == 3
    AdapterStore(poet.parent.parent)
    assert store.delete("ann", "poet") == [1, 2, 3]


def test_a_link_is_removed_and_not_what_it_leads_to(
    store: AdapterStore, poet: Path, tmp_path: Path
) -> None:
    poet.rename(tmp_path / "elsewhere")
    poet.symlink_to(tmp_path / "elsewhere")
    assert store.resolve("ann", "poet").version == 2
    store.delete("ann", "poet")
    assert store.names("ann") == ["sage"]
    assert (tmp_path / "elsewhere" / "2" / "adapter.safetensors").exists()


@pytest.mark.parametrize("name", ["latest", "2/adapter.safetensors"])
def test_what_may_not_be_read_is_told(
    store: AdapterStore, poet: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path == poet / name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AdapterCorrupt, match=f"{poet / name} cannot be read .Permission denied"):
        store.load(store.resolve("ann", "poet"))


@pytest.mark.parametrize("folder", [".staging", ".trash", ".bases"])
def test_a_vanished_folder_for_work_is_made_anew(
    store: AdapterStore,
    poet: Path,
    folder: str,
    make_manifest: MakeManifest,
    make_tensors: MakeTensors,
) -> None:
    (poet.parent.parent / folder).rmdir()
    assert store.publish("ann", "poet", make_manifest(), make_tensors()).version == 3
    assert store.delete("ann", "poet", 3) == [3]
    assert store.delete("ann", "poet") == [1, 2]


def test_vanished_adapters_are_not_taken_for_none(store: AdapterStore, poet: Path) -> None:
    root = poet.parent.parent
    root.rename(root.parent / "away")
    for ask in (
        lambda: store.names("ann"),
        lambda: store.resolve("ann", "poet"),
        lambda: store.delete("ann", "poet"),
    ):
        with pytest.raises(FileNotFoundError, match=str(root)):
            ask()
    assert not root.exists()
    os.rename(root.parent / "away", root)
    assert store.open(AdapterRef("ann", "poet", 2)).manifest.rank == 4
