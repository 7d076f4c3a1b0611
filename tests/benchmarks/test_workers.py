"""The processes that runs are handed to. Imports no torch, so that they are there at once."""

import time
from collections.abc import Callable
from functools import partial

from benchmarks.claims.runs import Outcome, Run
from benchmarks.support.workers import Pool, run_all


def outcome(run: Run, loss: float) -> Outcome:
    return Outcome(run, loss, {}, loss, trained=10, bytes=40, seconds=0.5)


def make_work(device: str) -> Callable[[Run], Outcome]:
    return partial(work, device)


def work(device: str, run: Run) -> Outcome:
    if run.seed == 1:
        raise ValueError(f"no {device} for this")
    return outcome(run, float(run.seed))


def test_workers_do_what_is_wanted_and_tell_of_what_failed() -> None:
    now = time.monotonic()
    pool = Pool(2, 0, begin_until=now + 60, stop_at=now + 90, make_work=make_work)
    runs = [Run("sst2", "ours", "lora", 4, 0.1, seed=seed) for seed in range(4)]
    done: dict[Run, Outcome] = {runs[3]: outcome(runs[3], 7.0)}
    noted: list[Outcome] = []
    failed = run_all(pool, lambda _: runs, done, noted.append)
    assert {run.seed: done[run].tune_loss for run in done} == {0: 0.0, 2: 2.0, 3: 7.0}
    assert sorted(each.run.seed for each in noted) == [0, 2]
    assert list(failed) == [runs[1]] and "no cpu for this" in failed[runs[1]]
