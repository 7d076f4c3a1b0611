"""Owners go round, in simulated serving: the real admission, plan and blocks."""

import random
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from server.scheduler.answer import Answer
from server.scheduler.turns import Turns
from tests.scheduler import simulated
from tests.scheduler.simulated import Machine, Simulation, p95

MACHINE = Machine()


def load(
    sim: Simulation, seed: int, owner: str, count: int, gap_s: float = 0.0, weight: float = 1.0
) -> None:
    """Requests of mixed lengths, all at once or with random gaps."""
    rng, after = random.Random(seed), 0.0
    for _ in range(count):
        after += rng.expovariate(1 / gap_s) if gap_s else 0.0
        prompt, answer = rng.randrange(50, 800), rng.randrange(20, 300)
        sim.ask(owner, prompt, answer, weight=weight, after=after)


def speed(sim: Simulation) -> float:
    return sum(sim.served.values()) / sim.clock


@pytest.mark.parametrize("gap_s", [0.35, 1.0])
def test_a_light_owner_hardly_feels_a_heavy_one(
    monkeypatch: pytest.MonkeyPatch, gap_s: float
) -> None:
    """Its equal share is half the rows, tokens and memory for itself, in steps whose other half is
    always full."""
    count = int(30 / gap_s)
    beside, together, share = (Simulation(it) for it in (MACHINE, MACHINE, MACHINE.part(0.5)))
    load(beside, 2, "heavy", 500)
    load(beside, 1, "light", count, gap_s)
    load(together, 2, "one", 500)
    load(together, 1, "one", count, gap_s)
    load(share, 1, "light", count, gap_s)
    beside.run(), together.run()
    alone: Callable[[int, int], float] = simulated.seconds
    monkeypatch.setattr(simulated, "seconds", lambda prompt, rows: alone(prompt + 224, rows + 32))
    share.run()
    assert p95(beside.first_tokens["light"]) <= 1.5 * p95(share.first_tokens["light"])
    assert speed(beside) >= 0.98 * speed(together)
    assert p95(together.first_tokens["one"]) > 50 * p95(beside.first_tokens["light"])


def test_scarce_memory_is_no_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    scarce = Machine(blocks=1500)
    beside, together = Simulation(scarce), Simulation(scarce)
    for sim, heavy, light in ((beside, "heavy", "light"), (together, "one", "one")):
        load(sim, 2, heavy, 500)
        load(sim, 1, light, 30, 1.0)
        sim.run()
    assert beside.preemptions > 50
    assert p95(beside.first_tokens["light"]) < 0.3
    assert speed(beside) >= 0.96 * speed(together)


@pytest.mark.parametrize("machine", [MACHINE, Machine(rows=9, step_tokens=100, blocks=400)])
def test_owners_are_served_by_weight(machine: Machine) -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}
    sim = Simulation(machine)
    for seed, (owner, weight) in enumerate(weights.items()):
        load(sim, seed, owner, 400, weight=weight)
    sim.run(until=20)
    assert sim.admission.num_waiting > 0
    per_weight = [sim.served[owner] / weight for owner, weight in weights.items()]
    assert max(per_weight) / min(per_weight) < 1.1, sim.served


@pytest.mark.parametrize("seed", range(12))
def test_any_load_ends_and_no_row_stays_free(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whoever waits beside a free row lacks memory, and all are served in the end."""
    rng = random.Random(seed)
    machine = Machine(rng.randrange(1, 12), rng.randrange(16, 300), rng.randrange(80, 300))
    sim = Simulation(machine)
    for number in range(rng.randrange(1, 6)):
        gap = rng.choice([0.0, 0.05])
        load(sim, seed + number, f"o{number}", 12, gap, weight=rng.choice([0.3, 1.0, 5.0]))
    admit, admission = sim.admission.admit, sim.admission

    def checked(*arguments: Any) -> list[Answer]:
        started = admit(*arguments)
        beside = [*sim.running.values(), *started]
        if len(beside) < machine.rows and admission.num_waiting:
            with closing(admission._turns.in_turn()) as in_turn:
                first = next(in_turn)
            lacking = admission._blocks_lacking(beside)
            assert lacking + admission._need(first) > sim.pool.num_free, "there was room"
        return started

    monkeypatch.setattr(admission, "admit", checked)
    asked = len(sim._coming)
    sim.run()
    assert sum(map(len, sim.first_tokens.values())) == asked
    assert sim.pool.num_free == machine.blocks


def test_one_owner_is_served_in_order_of_arrival() -> None:
    sim = Simulation(Machine(rows=5, blocks=10_000))
    load(sim, 3, "one", 60, 0.02)
    sim.run()
    assert sim.order == list(range(1, 61))


def test_the_wait_of_a_newcomer_is_bounded() -> None:
    """However many owners and requests were there before, an owner's first is soon in."""
    sim = Simulation(MACHINE)
    for number in range(20):
        load(sim, number, f"o{number}", 100)
    sim.ask("new", 100, 10, after=5.0)
    sim.run(until=10)
    assert sim.first_tokens["new"][0] < 0.2


def test_a_pause_sheds_no_debt() -> None:
    """An owner that comes in bursts gets no more than one that always waits."""
    sim = Simulation(Machine(rows=8))
    sim.ask("steady", 100, 50)

    def again(owner: str) -> None:
        bursts = owner == "bursts"
        if bursts and any(it.owner == owner for it in sim.running.values()):
            return
        for _ in range(8 if bursts else 1):
            sim.ask(owner, 100, 50, after=0.05 if bursts else 0.0)

    sim.on_end = again
    for _ in range(30):
        sim.ask("steady", 100, 50)
    again("bursts")
    sim.run(until=60)
    assert 0.4 < sim.served["bursts"] / sim.served["steady"] < 1.05


def test_counters_of_owners_that_left_are_bounded() -> None:
    sim = Simulation(MACHINE)
    sim.ask("stays", 10, 5000)
    for number in range(5000):
        sim.ask(f"o{number}", 4, 1, after=number * 1e-3)
    sim.run(until=30)
    turns: Turns[Answer] = sim.admission._turns
    assert len(sim.first_tokens) == 5001
    assert len(turns._accounts) < 1100
    assert len(turns._heap) < 1100
    sim.run()
    sim.admission.admit({}, lambda answer, error: None, sim.preempt)
    assert not turns._accounts
