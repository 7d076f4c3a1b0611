"""The slot table: who stays, who goes, and that no two adapters ever share a slot."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters_store.manifest import AdapterRef
from server.adapters.facts import AdapterFacts
from server.adapters.method import BasisSize
from server.adapters.slots import SlotTable
from server.errors import Conflict, Unavailable


def facts(name: str, seed: int = 0) -> AdapterFacts:
    ref = AdapterRef("ann", name, 1)
    return AdapterFacts(ref, "vera", seed, 4, seed, BasisSize(4, 4), frozenset(), 100, "")


def slot_of(table: SlotTable, name: str, seed: int = 0) -> int | None:
    """Acquire, as residency does."""
    held = table.use(facts(name).ref) or table.take(facts(name, seed))
    return held.slot if held else None


def release(table: SlotTable, *names: str) -> None:
    for name in names:
        table.release(facts(name).ref)


def residents(table: SlotTable) -> set[str]:
    return {occupant.facts.ref.name for occupant in table}


def test_slots_are_given_from_one_up() -> None:
    table = SlotTable(3, 1)
    assert [slot_of(table, name) for name in "abc"] == [1, 2, 3]


def test_none_while_all_are_in_use() -> None:
    table = SlotTable(2, 1)
    slot_of(table, "a"), slot_of(table, "b")
    assert slot_of(table, "c") is None
    release(table, "b")
    assert slot_of(table, "c") == 2
    assert residents(table) == {"a", "c"}


def test_the_least_recently_used_makes_room() -> None:
    table = SlotTable(3, 1)
    for name in "abc":
        slot_of(table, name)
    release(table, "a", "b", "c")
    slot_of(table, "a")
    release(table, "a")
    assert slot_of(table, "d") == 2
    assert residents(table) == {"a", "c", "d"}
    assert table.evictions == 1


def test_a_use_is_counted_for_each_acquire() -> None:
    table = SlotTable(1, 1)
    assert slot_of(table, "a") == slot_of(table, "a") == 1
    release(table, "a")
    assert slot_of(table, "b") is None
    release(table, "a")
    assert slot_of(table, "b") == 1


def test_releasing_too_often_is_an_error() -> None:
    table = SlotTable(1, 1)
    slot_of(table, "a")
    release(table, "a")
    with pytest.raises(ValueError, match="released more often"):
        release(table, "a")


def test_a_pinned_adapter_stays() -> None:
    table = SlotTable(2, 1)
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
    table = SlotTable(2, 1)
    table.pin(facts("a").ref)
    table.pin(facts("a").ref)
    with pytest.raises(Conflict, match=r"pinning b@1 would leave no slot.*1 of 2"):
        table.pin(facts("b").ref)


def test_a_forgotten_adapter_leaves_at_its_last_use() -> None:
    table = SlotTable(2, 1)
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
    table = SlotTable(8, 2)
    for name, seed in [("a", 1), ("b", 2), ("c", 1)]:
        slot_of(table, name, seed)
    release(table, "a", "b", "c")
    slot_of(table, "a")
    release(table, "a")
    slot_of(table, "d", 3)
    assert residents(table) == {"a", "c", "d"}
    assert table.seeds == {1, 3}


def test_a_new_seed_waits_while_all_seeds_are_in_use() -> None:
    table = SlotTable(8, 2)
    slot_of(table, "a", 1), slot_of(table, "b", 2)
    assert slot_of(table, "c", 3) is None
    release(table, "b")
    assert slot_of(table, "c", 3) is not None


def test_a_seed_that_pins_shut_out_for_good_is_refused() -> None:
    table = SlotTable(8, 1)
    slot_of(table, "a", 1)
    table.pin(facts("a").ref)
    with pytest.raises(Unavailable, match=r"b@1 needs a basis of its own.*unpin"):
        slot_of(table, "b", 2)


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
    table = SlotTable(size, max_seeds)
    uses: dict[str, int] = {}
    held: dict[str, int] = {}
    for action, name in steps:
        ref, seed = facts(name).ref, ord(name) % 3
        try:
            if action == "acquire":
                slot = slot_of(table, name, seed)
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
        slots = [occupant.slot for occupant in table]
        assert len(slots) == len(set(slots)) <= size
        assert all(1 <= slot <= size for slot in slots)
        assert len(table.seeds) <= max_seeds
        assert set(table.facts) == set(slots)
        for user, count in uses.items():
            if count:
                occupant = table.find(facts(user).ref)
                assert occupant is not None
                assert (occupant.slot, occupant.uses) == (held[user], count)
