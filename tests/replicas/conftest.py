"""Fleets of counting engines in processes of their own."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.replicas.fleet import Fleet
from server.replicas.replica import Replica

ROOT = Path(__file__).parent.parent.parent
MakeFleet = Callable[..., Fleet]


def replica(number: int, how: str) -> Replica:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return Replica(number, [sys.executable, "-m", "tests.replicas.drill", how], environment)


@pytest.fixture
def make_fleet() -> Iterator[MakeFleet]:
    """Starts replicas; a token of theirs takes `pace_s`."""
    made: list[Fleet] = []

    def make(count: int = 1, pace_s: float | str = 0.0) -> Fleet:
        fleet = Fleet([replica(number, str(pace_s)) for number in range(count)])
        made.append(fleet)
        fleet.start()
        return fleet

    yield make
    for fleet in made:
        fleet.stop(0)
