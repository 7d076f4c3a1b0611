"""The slot table: who stays, who goes, and that no two adapters ever share a slot."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters_store.manifest import AdapterRef
from server.adapters.memory.adapter_facts import AdapterFacts
from server.adapters.memory.layouts import PAGE, RowLayout
from server.adapters.memory.matrices import BasisNeed
from server.adapters.memory.pages import FreePages
from server.adapters.memory.slots import SlotTable
from server.adapters.methods.basis_id import BasisId
from server.adapters.methods.method import BasisSize
from server.adapters.methods.vera.vera import Vera
from server.bases.seeded_matrices import SPEC
from server.errors import Conflict, Unavailable

BASIS_BYTES = 100


def layout(pages: int) -> RowLayout:
    made = RowLayout(Vera(), {}, 1, torch.float32)
    made.width = pages * PAGE
    return made


LAYOUTS = {pages: layout(pages) for pages in range(1, 8)}


def new_table(size: int, max_seeds: int, pages: int = 1000) -> SlotTable:
    free = FreePages(1, pages)
    return SlotTable(size, free, max_seeds * BASIS_BYTES, lambda basis, need: BASIS_BYTES)


def facts(name: str, seed: int = 0, pages: int = 1) -> AdapterFacts:
    need = BasisNeed(BasisSize(4, 4), frozenset())
    return AdapterFacts(
        ref=AdapterRef("ann", name, 1),
        method=Vera(),
        rank=4,
        targets=frozenset(),
        layout=LAYOUTS[pages],
        basis=BasisId(SPEC, seed),
        need=need,
        bytes=100,
        sha256="",
    )


def slot_of(table: SlotTable, name: str, seed: int = 0, pages: int = 1) -> int | None:
    """Acquire, as residency does."""
    held = table.use(facts(name).ref) or table.take(facts(name, seed, pages))
    return held.slot if held else None


def release(table: SlotTable, *names: str) -> None:
    for name in names:
        table.release(facts(name).ref)


def residents(table: SlotTable) -> set[str]:
    return {resident.facts.ref.name for resident in table}


def test_slots_are_given_from_one_up() -> None:
    table = new_table(3, 1)
    assert [slot_of(table, name) for name in "abc"] == [1, 2, 3]


def test_none_while_all_are_in_use() -> None:
    table = new_table(2, 1)
    slot_of(table, "a"), slot_of(table, "b")
    assert slot_of(table, "c") is None
    release(table, "b")
    assert slot_of(table, "c") == 2
    assert residents(table) == {"a", "c"}


def test_the_least_recently_used_makes_room() -> None:
    table = new_table(3, 1)
    for name in "abc":
        slot_of(table, name)
    release(table, "a", "b", "c")
    slot_of(table, "a")
    release(table, "a")
    assert slot_of(table, "d") == 2
    assert residents(table) == {"a", "c", "d"}
    assert table.evictions == 1


def test_a_use_is_counted_for_each_acquire() -> None:
    table = new_table(1, 1)
    assert slot_of(table, "a") == slot_of(table, "a") == 1
    release(table, "a")
    assert slot_of(table, "b") is None
    release(table, "a")
    assert slot_of(table, "b") == 1


def test_releasing_too_often_is_an_error() -> None:
    table = new_table(1, 1)
    slot_of(table, "a")
    release(table, "a")
    with pytest.raises(ValueError, match="released more often"):
        release(table, "a")


def test_a_pinned_adapter_stays() -> None:
    table = new_table(2, 1)
    for name in "ab":
        slot_of(table, name)
    release(table, "a", "b")
    table.pin(facts("a").ref)
    slot_of(table, "c")
    release(table, "c")
    assert residents(table) == {"a", "c"}
    table.unpin(facts("a").ref)
    slot_of(table, "d")
    assert residents(table) == {"c", "d"}


def test_one_slot_is_always_left_for_the_others() -> None:
    table = new_table(2, 1)
    table.pin(facts("a").ref)
    table.pin(facts("a").ref)
    with pytest.raises(Conflict, match=r"pinning b@1 would leave no slot.*1 of 2"):
        table.pin(facts("b").ref)


def test_a_forgotten_adapter_leaves_at_its_last_use() -> None:
    table = new_table(2, 1)
    slot_of(table, "a"), slot_of(table, "a"), slot_of(table, "b")
    release(table, "b")
    table.forget(facts("a").ref)
    table.forget(facts("b").ref)
    table.forget(facts("c").ref)
    assert residents(table) == {"a"}
    release(table, "a")
    assert residents(table) == {"a"}
    release(table, "a")
    assert residents(table) == set()


def test_a_new_seed_pushes_out_the_idle_seed_used_longest_ago() -> None:
    table = new_table(8, 2)
    for name, seed in [("a", 1), ("b", 2), ("c", 1)]:
        slot_of(table, name, seed)
    release(table, "a", "b", "c")
    slot_of(table, "a")
    release(table, "a")
    slot_of(table, "d", 3)
    assert residents(table) == {"a", "c", "d"}
    assert {basis.seed for basis in table.bases} == {1, 3}


def test_a_new_seed_waits_while_all_seeds_are_in_use() -> None:
    table = new_table(8, 2)
    slot_of(table, "a", 1), slot_of(table, "b", 2)
    assert slot_of(table, "c", 3) is None
    release(table, "b")
    assert slot_of(table, "c", 3) is not None


def test_a_seed_that_pins_shut_out_for_good_is_refused() -> None:
    table = new_table(8, 1)
    slot_of(table, "a", 1)
    table.pin(facts("a").ref)
    with pytest.raises(Unavailable, match=r"b@1 reads random matrices.*basis_memory_mb, or unpin"):
        slot_of(table, "b", 2)


def test_rows_of_any_length_share_the_pages() -> None:
    table = new_table(9, 1, pages=10)
    for name, pages in [("a", 2), ("b", 5), ("c", 3)]:
        assert slot_of(table, name, pages=pages) is not None
    assert slot_of(table, "d", pages=1) is None
    release(table, "b")
    assert slot_of(table, "d", pages=1) is not None
    assert slot_of(table, "e", pages=4) is not None
    ranges = sorted((o.page, o.page + o.facts.layout.pages) for o in table)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ranges))
    assert residents(table) == {"a", "c", "d", "e"}


def test_a_long_row_pushes_out_as_many_as_it_takes_and_no_more() -> None:
    table = new_table(9, 1, pages=8)
    for name in "abcdefgh":
        slot_of(table, name)
    release(table, *"abcdefgh")
    assert slot_of(table, "long", pages=3) is not None
    assert residents(table) == {"long", *"defgh"}
    assert table.evictions == 3


def test_nobody_leaves_for_a_row_that_would_not_fit_all_the_same() -> None:
    table = new_table(9, 1, pages=4)
    slot_of(table, "a", pages=2), slot_of(table, "b", pages=2)
    release(table, "b")
    assert slot_of(table, "c", pages=3) is None
    assert residents(table) == {"a", "b"}


def test_a_row_longer_than_the_memory_is_refused() -> None:
    with pytest.raises(Unavailable, match=r"long@1 takes .* MiB.*raise adapter_memory_mb"):
        slot_of(new_table(9, 1, pages=4), "long", pages=5)


def test_a_basis_larger_than_the_memory_is_refused() -> None:
    table = SlotTable(2, FreePages(1, 9), 10, lambda basis, need: BASIS_BYTES)
    with pytest.raises(Unavailable, match=r"a@1 reads random matrices.*raise basis_memory_mb"):
        slot_of(table, "a")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "release", "pin", "unpin", "forget"]), st.sampled_from("abcdef")
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(1, 4), st.integers(1, 3))
def test_whatever_happens_the_table_holds_together(
    steps: list[tuple[str, str]], size: int, max_seeds: int
) -> None:
    table = new_table(size, max_seeds, pages=7)
    uses: dict[str, int] = {}
    held: dict[str, int] = {}
    for action, name in steps:
        ref, seed, pages = facts(name).ref, ord(name) % 3, 1 + ord(name) % 4
        try:
            if action == "acquire":
                slot = slot_of(table, name, seed, pages)
                if slot is not None:
                    assert held.setdefault(name, slot) == slot or not uses.get(name)
                    held[name] = slot
                    uses[name] = uses.get(name, 0) + 1
            elif action == "release" and uses.get(name):
                table.release(ref)
                uses[name] -= 1
            elif action in ("pin", "unpin", "forget"):
                getattr(table, action)(ref)
        except (Conflict, Unavailable):
            pass
        slots = [resident.slot for resident in table]
        assert len(slots) == len(set(slots)) <= size
        assert all(1 <= slot <= size for slot in slots)
        assert len(table.bases) <= max_seeds
        assert table.bases == {resident.facts.basis for resident in table}
        assert set(table.by_slot) == set(slots)
        pages_held = [p for o in table for p in range(o.page, o.page + o.facts.layout.pages)]
        assert len(pages_held) == len(set(pages_held)) <= 7
        for user, count in uses.items():
            if count:
                resident = table.find(facts(user).ref)
                assert resident is not None
                assert (resident.slot, resident.uses) == (held[user], count)
