"""The counters of the busiest never go back, and names keep their places."""

from collections import defaultdict
from random import Random

from server.db.usage_rows import UsageKey
from server.metrics import PREFIX
from server.tenancy.usage.busy_names import HALF_LIFE_S, HELD_S, MOST_RANKED, BusyNames

Series = dict[tuple[str, ...], float]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def counted(busy: BusyNames, owner: str, requests: int = 1, model: str = "base") -> None:
    counts = {"requests": requests, "refusals": 0, "prompt": 0, "completion": 0}
    busy.count(UsageKey(owner, model=model), counts)


def series(busy: BusyNames, name: str = "owner_requests") -> Series:
    family = next(it for it in busy.collect() if it.name == PREFIX + name)
    labels = [label for label in ("owner", "adapter") if label in family.samples[0].labels]
    return {tuple(it.labels[x] for x in labels): it.value for it in family.samples}


def test_the_busiest_have_names_and_the_rest_are_other() -> None:
    busy = BusyNames(most=2, clock=Clock())
    for owner, requests in (("ann", 5), ("bob", 3), ("cy", 2), ("other", 4)):
        counted(busy, owner, requests)
    assert series(busy) == {("ann",): 5, ("bob",): 3, ("other",): 6}


def test_adapters_have_their_owner_and_the_base_is_none() -> None:
    busy = BusyNames(clock=Clock())
    for owner, model in (("ann", "pirate"), ("bob", "ann/pirate"), ("bob", "base"), ("bob", "")):
        counted(busy, owner, model=model)
    assert series(busy, "adapter_requests") == {("ann", "pirate"): 2, ("other", "other"): 0}


def test_a_place_changes_hands_late_and_only_to_the_much_busier() -> None:
    clock = Clock()
    busy = BusyNames(most=1, clock=clock)
    counted(busy, "ann", 10)
    counted(busy, "bob", 100)
    assert set(series(busy)) == {("ann",), ("other",)}, "a place is held for some minutes"
    clock.now += HELD_S
    counted(busy, "ann", 40)
    assert set(series(busy)) == {("ann",), ("other",)}, "bob is not much busier"
    counted(busy, "bob", 100)
    assert series(busy) == {("bob",): 0, ("other",): 200}
    counted(busy, "bob", 7)
    assert series(busy) == {("bob",): 7, ("other",): 200}
    clock.now += 20 * HALF_LIFE_S
    assert set(series(busy)) == {("bob",), ("other",)}, "nobody else is busy"


def test_rates_add_up_and_no_series_goes_back_while_names_come_and_go() -> None:
    clock, random = Clock(), Random(7)
    busy = BusyNames(most=3, clock=clock)
    total, increase, before = 0, 0.0, Series()
    changes = 0
    for step in range(400):
        for _ in range(20):
            owner = f"owner-{(random.randrange(4) + step // 100 * 5) % 20}"
            counted(busy, owner)
            total += 1
        now = series(busy)
        for name, value in now.items():
            assert value >= before.get(name, 0.0), name
            increase += value - before.get(name, 0.0)
        changes += set(now) != set(before)
        assert len(now) <= 4
        before = now
        clock.now += 15
    assert increase == total
    assert 2 <= changes <= 30, "the busy ones change, and lines do not flap"


def test_the_memory_for_names_is_bounded() -> None:
    busy = BusyNames(most=1, clock=Clock())
    for number in range(2 * MOST_RANKED + 100):
        counted(busy, f"owner-{number}")
    assert len(busy._owners._scores) <= 2 * MOST_RANKED
    assert sum(series(busy).values()) == 2 * MOST_RANKED + 100


def test_every_family_has_the_same_series() -> None:
    busy = BusyNames(clock=Clock())
    counted(busy, "ann", model="pirate")
    by_label: defaultdict[str, set[int]] = defaultdict(set)
    for family in busy.collect():
        by_label[family.name.removeprefix(PREFIX).partition("_")[0]].add(len(family.samples))
    assert dict(by_label) == {"owner": {2}, "adapter": {2}}
