"""What is kept for a step leaves with the matrices that it reads; see `GroupCache`."""

import gc
import weakref

import pytest

from server.adapters.batch.fused_plan import FusedGroup
from server.adapters.batch.group_cache import GroupCache
from server.adapters.memory.matrices import LoadedBasis
from server.adapters.methods.method import BasisPair
from server.errors import Unavailable
from tests.adapters.conftest import Serve
from tests.adapters.made import make_adapter
from tests.adapters.served import Served
from tests.models import tiny_base

WIDE = {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 1}
RANK = 512  # with 512 columns, A and B in float32 are 2 MiB: two bases fit below


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve(tiny_base("llama", **WIDE), slots=16, max_rank=RANK, memory_mb=64, basis_mb=5)


def visit(served: Served, seed: int) -> tuple[FusedGroup, ...]:
    """Serve one step of an adapter over a basis of its own; the groups that a graph is made for."""
    made = make_adapter(served.base, rank=RANK, seed=seed, draw=seed)
    ref = served.publish(made, f"a{seed}")
    slot = served.acquire(ref)
    served.adapters.steps.batch([slot, 0])
    plan = served.adapters.steps.plan([slot, 0], replayed=True)
    served.adapters.release(ref)
    return plan.groups


def test_caches_keep_no_matrices_that_the_budget_dropped(served: Served) -> None:
    cache: GroupCache[str] = served.adapters.steps.group_cache(1000)
    bases: list[weakref.ref[LoadedBasis]] = []
    pairs: list[weakref.ref[BasisPair]] = []
    for seed in range(7):
        groups = visit(served, seed)
        cache.put(groups, "decodes", f"graph {seed}")
        bases.append(weakref.ref(groups[0].loaded))
        pairs.append(weakref.ref(next(iter(groups[0].loaded.pairs.values()))))
        del groups
        gc.collect()
        kept = [base() is not None for base in bases]
        assert kept == [index > seed - 2 for index in range(seed + 1)]
        assert [pair() is not None for pair in pairs] == kept
        assert list(cache._entries.values()) == [
            f"graph {it}" for it in range(seed + 1) if kept[it]
        ]


def test_a_basis_that_comes_back_finds_nothing_of_before(served: Served) -> None:
    """A graph of the old matrices reads addresses that now hold something else."""
    cache: GroupCache[str] = served.adapters.steps.group_cache(1000)
    cache.put(visit(served, 0), "decodes", "the old graph")
    assert cache.get(visit(served, 0), "decodes") == "the old graph"
    for seed in (1, 2):
        visit(served, seed)
    assert cache.get(visit(served, 0), "decodes") is None


def test_a_larger_rank_replaces_the_matrices_of_a_basis(served: Served) -> None:
    cache: GroupCache[str] = served.adapters.steps.group_cache(1000)
    small = make_adapter(served.base, rank=8, seed=0, draw=9)
    slot = served.acquire(served.publish(small, "small"))
    groups = served.adapters.steps.plan([slot], replayed=True).groups
    cache.put(groups, "decodes", "the small graph")
    visit(served, 0)
    assert cache.get(groups, "decodes") is None


def test_matrices_leave_before_others_come(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else both are in memory at once, beyond the budget."""
    order: list[str] = []
    cache: GroupCache[str] = served.adapters.steps.group_cache(1000)
    drop = cache.drop

    def dropped(bases: set[LoadedBasis]) -> None:
        order.append("drop")
        drop(bases)

    def copied(*_: object) -> None:
        order.append("copy")
        raise Unavailable("no memory")

    visit(served, 0)
    visit(served, 1)
    monkeypatch.setattr(cache, "drop", dropped)
    monkeypatch.setattr("server.adapters.memory.device_bases.on_device", copied)
    with pytest.raises(Unavailable):
        visit(served, 2)
    assert order == ["drop", "copy"]


def test_a_cache_is_bounded_and_forgets_the_longest_unused(served: Served) -> None:
    cache: GroupCache[int] = GroupCache(2)
    groups = visit(served, 0)
    for name in range(2):
        cache.put(groups, name, name)
    assert cache.get(groups, 0) == 0
    cache.put((), 2, 2)
    assert [cache.get(groups, name) for name in range(2)] == [0, None]
    assert cache.get((), 2) == 2
