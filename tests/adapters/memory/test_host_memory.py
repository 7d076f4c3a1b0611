"""What host memory holds, and for how long: adapters by bytes, matrices by seed."""

import gc
import threading

import pytest
import torch

from adapters_store.manifest import AdapterRef
from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.memory.adapter_facts import AdapterFacts
from server.adapters.memory.host_cache import HostCache, LoadedAdapter
from server.adapters.memory.layouts import RowLayout
from server.adapters.memory.matrices import BasisNeed, BasisSource, HostBases, SharedBases
from server.adapters.methods.basis_id import BasisId
from server.adapters.methods.method import BasisPair, BasisPairs, BasisSize
from server.adapters.methods.vera.vera import Vera
from server.bases.seeded_matrices import SPEC, Basis
from tests.models import tiny_base

BASE = tiny_base("llama")
LAYOUT = RowLayout(Vera(), BASE.targets, 4, torch.float32)
EVERYTHING = 2**40


def seeded(seed: int, *, per_layer: bool = False) -> BasisId:
    return BasisId(SPEC, seed, per_layer=per_layer)


def need(a_rank: int, b_rank: int, *targets: str) -> BasisNeed:
    return BasisNeed(BasisSize(a_rank, b_rank), frozenset(targets))


def new_bases(max_bytes: int = EVERYTHING) -> HostBases:
    return HostBases(BasisSource(BASE), max_bytes, pinned=False)


def pairs_of(bases: BasisPairs) -> set[BasisPair]:
    return set(bases.values())


def loaded(name: str, size: int = 100) -> LoadedAdapter:
    ref = AdapterRef("ann", name, 1)
    facts = AdapterFacts(
        ref, Vera(), 1, frozenset(), LAYOUT, seeded(0), need(1, 1), bytes=size, sha256=""
    )
    return LoadedAdapter(facts, torch.zeros(1))


def held(cache: HostCache) -> list[str]:
    return [facts.ref.name for facts in cache.facts()]


def test_the_least_recently_used_leaves_when_bytes_run_out() -> None:
    cache = HostCache(1000)
    names = [f"a{i}" for i in range(10)]
    for name in names:
        cache.put(loaded(name))
    cache.get(AdapterRef("ann", "a0", 1))
    cache.put(loaded("new", 200))
    assert held(cache) == [*names[3:], "a0", "new"]


def test_the_last_few_stay_whatever_their_size() -> None:
    cache = HostCache(0)
    for i in range(20):
        cache.put(loaded(f"a{i}", 10**9))
    assert held(cache) == [f"a{i}" for i in range(12, 20)]


def test_bytes_of_what_was_replaced_or_dropped_are_free_again() -> None:
    cache = HostCache(1000)
    for _ in range(50):
        cache.put(loaded("same"))
    cache.put(loaded("gone", 500))
    cache.drop(AdapterRef("ann", "gone", 1))
    cache.drop(AdapterRef("ann", "never", 1))
    for i in range(9):
        cache.put(loaded(f"a{i}"))
    assert held(cache) == ["same", *(f"a{i}" for i in range(9))]


def test_a_shared_pair_is_the_basis_of_its_seed() -> None:
    source, wanted = BasisSource(BASE), need(5, 7)
    bases = source.pairs(seeded(3), wanted)
    (pair,) = pairs_of(bases)
    assert bases.keys() == BASE.targets.keys()
    assert torch.equal(pair.a, Basis(3).a(5, 80, torch.float32))
    assert torch.equal(pair.bt, Basis(3).b(80, 7, torch.float32).t())
    assert source.bytes_of(seeded(3), wanted) == pair.a.nbytes + pair.bt.nbytes


def test_layers_with_matrices_of_their_own_read_streams_of_their_own() -> None:
    paths = list(BASE.targets)
    wanted = need(5, 7, paths[0], paths[3])
    source, basis = BasisSource(BASE), seeded(3, per_layer=True)
    bases = source.pairs(basis, wanted)
    assert bases.keys() == {paths[0], paths[3]}
    for index in (0, 3):
        width = bases[paths[index]].a.shape[1]
        streams = Basis(3, layer=index)
        assert torch.equal(bases[paths[index]].a, streams.a(5, width, torch.float32))
        assert torch.equal(bases[paths[index]].bt, streams.b(width, 7, torch.float32).t())
    total = sum(pair.a.nbytes + pair.bt.nbytes for pair in pairs_of(bases))
    assert source.bytes_of(basis, wanted) == total


def test_bases_grow_and_never_shrink() -> None:
    bases = new_bases()
    bases.ensure(seeded(3), need(4, 9))
    assert bases.get(seeded(3), need(5, 5)) is None
    bases.ensure(seeded(3), need(6, 2))
    held = bases.get(seeded(3), need(6, 9))
    assert held is not None
    bases.ensure(seeded(3), need(1, 1))
    assert bases.get(seeded(3), need(1, 1)) is held


def test_bases_of_layers_grow_by_layers() -> None:
    bases, basis, paths = new_bases(), seeded(3, per_layer=True), list(BASE.targets)
    bases.ensure(basis, need(4, 4, paths[0]))
    assert bases.get(basis, need(4, 4, paths[1])) is None
    bases.ensure(basis, need(2, 2, paths[1]))
    held = bases.get(basis, need(4, 4, paths[0], paths[1]))
    assert held is not None
    assert held.pairs.keys() == {paths[0], paths[1]}


def test_bases_are_limited_in_bytes() -> None:
    wanted = need(2, 2)
    bases = new_bases(2 * BasisSource(BASE).bytes_of(seeded(0), wanted))
    for seed in (1, 2):
        bases.ensure(seeded(seed), wanted)
    assert bases.get(seeded(1), wanted) is not None
    bases.ensure(seeded(3), wanted)
    assert [bases.get(seeded(seed), wanted) is None for seed in (1, 2, 3)] == [False, True, False]


def test_a_basis_is_made_once_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    made, source = [], BasisSource(BASE)
    plain = source.pairs

    def counted(basis: BasisId, need: BasisNeed) -> BasisPairs:
        made.append(basis.seed)
        return plain(basis, need)

    monkeypatch.setattr(source, "pairs", counted)
    bases = HostBases(source, EVERYTHING, pinned=False)
    args = (seeded(5), need(8, 8))
    threads = [threading.Thread(target=bases.ensure, args=args) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [5]


def test_adapters_that_learn_at_once_read_one_copy() -> None:
    shared = SharedBases(BASE)
    first = TrainableAdapter(BASE, "vera", 4, 7, "attention", {}, shared)
    second = TrainableAdapter(BASE, "vera", 4, 7, "attention", {}, shared)
    other = TrainableAdapter(BASE, "vera", 4, 8, "attention", {}, shared)
    assert first._loaded is second._loaded
    assert first._loaded is not other._loaded
    assert len(shared._loaded) == 2
    del other
    gc.collect()
    assert len(shared._loaded) == 1
