"""Imported matrices: kept once, found by their hash, gone with the last adapter that reads them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters_store.imported_bases import ImportedBases, basis_sha256
from adapters_store.store import AdapterStore
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound
from tests.adapters_store.conftest import MakeManifest, MakeTensors


def pair(seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(4, 9, generator=random), "b": torch.randn(7, 4, generator=random)}


@pytest.fixture
def bases(tmp_path: Path) -> ImportedBases:
    return ImportedBases(tmp_path / "bases")


def test_what_was_kept_is_read_again(bases: ImportedBases) -> None:
    sha256 = bases.keep(pair())
    read = bases.read(sha256)
    assert set(read) == {"a", "b"}
    assert all(torch.equal(read[name], tensor) for name, tensor in pair().items())
    assert sha256 == basis_sha256(pair())


def test_shapes_are_read_without_the_numbers(bases: ImportedBases, tmp_path: Path) -> None:
    sha256 = bases.keep(pair())
    assert bases.shapes(sha256) == {"a": (4, 9), "b": (7, 4)}
    with pytest.raises(AdapterNotFound, match="import the adapter again"):
        bases.shapes("f" * 64)
    (file,) = (tmp_path / "bases").iterdir()
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(AdapterCorrupt, match="import the adapter again"):
        bases.shapes(sha256)


def test_the_same_matrices_are_kept_once(bases: ImportedBases, tmp_path: Path) -> None:
    first = bases.keep(pair())
    stored = [*(tmp_path / "bases").iterdir()]
    before = stored[0].stat()
    # Another order of names, and a view that is not contiguous, are the same matrices.
    again = {"b": pair()["b"], "a": pair()["a"].t().contiguous().t()}
    assert bases.keep(again) == first
    assert [*(tmp_path / "bases").iterdir()] == stored
    assert stored[0].stat().st_mtime_ns == before.st_mtime_ns
    assert bases.keep(pair(1)) != first
    assert len(bases.hashes()) == 2


def test_a_hash_sees_shapes_and_names() -> None:
    a, b = torch.arange(6.0).view(2, 3), torch.arange(6.0, 12).view(3, 2)
    hashes = {
        basis_sha256({"a": a, "b": b}),
        basis_sha256({"a": a.view(3, 2), "b": b}),
        basis_sha256({"a": b, "b": a}),
        basis_sha256({"a": a, "b": b.view(6, 1)}),
    }
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": torch.zeros(2, 2)}, "'a' and 'b'"),
        ({**pair(), "c": torch.zeros(2, 2)}, "'a' and 'b'"),
        ({**pair(), "a": torch.zeros(3)}, "'a' is torch.float32 of shape \\[3\\]"),
        ({**pair(), "b": torch.zeros(2, 2, dtype=torch.float16)}, "'b' is torch.float16"),
        ({**pair(), "b": torch.zeros(2, 0)}, "'b' is"),
    ],
)
def test_only_a_pair_of_matrices_is_kept(
    bases: ImportedBases, tmp_path: Path, tensors: dict[str, Tensor], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        bases.keep(tensors)
    assert [*(tmp_path / "bases").iterdir()] == []


def test_damage_is_refused(bases: ImportedBases, tmp_path: Path) -> None:
    sha256 = bases.keep(pair())
    path = tmp_path / "bases" / f"{sha256}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(AdapterCorrupt, match="altered or damaged"):
        bases.read(sha256)
    path.write_bytes(whole[:40])
    with pytest.raises(AdapterCorrupt, match=sha256):
        bases.read(sha256)
    path.unlink()
    with pytest.raises(AdapterNotFound, match="import the adapter again"):
        bases.read(sha256)


class TestInAStore:
    @pytest.fixture(autouse=True)
    def _make(
        self, store: AdapterStore, make_manifest: MakeManifest, make_tensors: MakeTensors
    ) -> None:
        self.store, self.manifest, self.tensors = store, make_manifest(), make_tensors()

    def publish(self, name: str, seed: int) -> str:
        basis = pair(seed)
        manifest = replace(self.manifest, basis_sha256=basis_sha256(basis))
        self.store.publish("ann", name, manifest, self.tensors, basis)
        return manifest.basis_sha256

    def test_bases_are_no_owner(self) -> None:
        self.publish("poet", 0)
        assert self.store.owners() == ["ann"]

    def test_a_basis_goes_with_its_last_reader(self) -> None:
        shared, other = self.publish("poet", 0), self.publish("cook", 1)
        assert self.publish("poet", 0) == shared
        assert self.publish("clerk", 0) == shared
        assert self.store.imported_bases.hashes() == {shared, other}
        self.store.delete("ann", "poet")
        assert self.store.imported_bases.hashes() == {shared, other}
        self.store.delete("ann", "clerk", 1)
        assert self.store.imported_bases.hashes() == {other}

    def test_a_start_sweeps_what_nobody_reads(self, tmp_path: Path) -> None:
        used = self.publish("poet", 0)
        self.store.imported_bases.keep(pair(1))
        (tmp_path / "adapters/.bases/left.part").write_bytes(b"x")
        again = AdapterStore(tmp_path / "adapters")
        assert again.imported_bases.hashes() == {used}
        assert [p.stem for p in (tmp_path / "adapters/.bases").iterdir()] == [used]

    def test_a_broken_adapter_may_read_any_basis(self, tmp_path: Path) -> None:
        used = self.publish("poet", 0)
        self.store.path(self.store.resolve("ann", "poet")).write_bytes(b"broken")
        assert AdapterStore(tmp_path / "adapters").imported_bases.hashes() == {used}
        self.store.delete("ann", "poet")
        assert AdapterStore(tmp_path / "adapters").imported_bases.hashes() == set()
