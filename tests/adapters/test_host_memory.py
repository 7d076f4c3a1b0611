"""What host memory holds, and for how long: adapters by bytes, matrices by seed."""

import threading

import pytest
import torch

from adapters_store.manifest import AdapterRef
from server.adapters import basis_pairs
from server.adapters.basis_pairs import HostPairs, make_pair, pair_bytes
from server.adapters.facts import AdapterFacts
from server.adapters.host_cache import HostCache, LoadedAdapter
from server.adapters.method import BasisPair, BasisSize
from server.bases.model import BaseModel
from server.bases.seeded import Basis
from tests.models import tiny_base

BASE = tiny_base("llama")


def loaded(name: str, size: int = 100) -> LoadedAdapter:
    ref = AdapterRef("ann", name, 1)
    facts = AdapterFacts(ref, "vera", 0, 1, 0, BasisSize(1, 1), frozenset(), size, "")
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


def test_a_pair_is_the_basis_of_its_seed() -> None:
    pair = make_pair(BASE, 3, BasisSize(5, 7))
    assert torch.equal(pair.a, Basis(3).a(5, 80, torch.float32))
    assert torch.equal(pair.bt, Basis(3).b(80, 7, torch.float32).t())
    assert pair_bytes(BASE, BasisSize(5, 7)) == pair.a.nbytes + pair.bt.nbytes


def test_a_pair_grows_and_never_shrinks() -> None:
    pairs = HostPairs(BASE, 2)
    pairs.ensure(3, BasisSize(4, 9))
    assert pairs.get(3, BasisSize(5, 5)) is None
    pairs.ensure(3, BasisSize(6, 2))
    pair = pairs.get(3, BasisSize(6, 9))
    assert pair is not None
    pairs.ensure(3, BasisSize(1, 1))
    assert pairs.get(3, BasisSize(1, 1)) is pair


def test_seeds_are_limited() -> None:
    pairs, size = HostPairs(BASE, 2), BasisSize(2, 2)
    for seed in (1, 2):
        pairs.ensure(seed, size)
    assert pairs.get(1, size) is not None
    pairs.ensure(3, size)
    assert [pairs.get(seed, size) is None for seed in (1, 2, 3)] == [False, True, False]


def test_a_pair_is_made_once_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(base: BaseModel, seed: int, size: BasisSize) -> BasisPair:
        made.append(seed)
        return make_pair(base, seed, size)

    monkeypatch.setattr(basis_pairs, "make_pair", counted)
    pairs = HostPairs(BASE, 2)
    threads = [threading.Thread(target=pairs.ensure, args=(5, BasisSize(8, 8))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [5]
