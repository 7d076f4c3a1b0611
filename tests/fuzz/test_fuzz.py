"""Short runs of all fuzzers. Longer ones, and other seeds: `python -m tests.fuzz --minutes 20`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.areas import ON_ONE_SERVER, running
from tests.fuzz.bodies import Bodies
from tests.fuzz.processes import Processes
from tests.fuzz.requests import REQUESTS
from tests.fuzz.target import Target
from tests.fuzz.trial import Fuzzer, hunt

SEED = 1
CASES = {"bodies": 120, "lines": 12, "checkpoints": 60, "raw": 25, "stops": 20, "schema": 1}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with running(tmp_path_factory.mktemp("fuzzed") / "server") as target:
        yield target


def check(fuzzer: Fuzzer, cases: int) -> None:
    report = hunt(fuzzer, SEED, lambda number: number < cases, small=True)
    assert not report.faults, f"{report.row}\n{report.story}"
    assert report.cases == cases


def test_what_is_changed_is_valid(target: Target) -> None:
    bodies = Bodies(target, big=False)
    unchanged = [bodies.judge({"kind": kind, "edits": []}) for kind in range(len(REQUESTS))]
    assert {verdict.outcome: verdict.wrong for verdict in unchanged} == {"200": None}


@pytest.mark.parametrize("area", CASES)
def test_a_short_run_finds_nothing(area: str, target: Target) -> None:
    check(ON_ONE_SERVER[area](target, big=False), CASES[area])


@pytest.mark.slow
def test_a_killed_engine_loses_nothing(tmp_path: Path) -> None:
    check(Processes(tmp_path / "round", "cpu", brief=True), 1)
