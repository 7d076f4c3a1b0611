"""Which rates, epochs and batches suit a small file: two bases, several kinds of work, all methods.

    pack --data DIR --base BASE --lines FILE    the lines as tokens of a base, once for each base
    run --bases NAME=BASE:FILE... --results FILE [--minutes 7]    every run; call it again to go on
    report FILE...                              the tables

DIR holds `snips` and `e2e`. A run trains as a job would, all but its rate, epochs and batches left
to the defaults. Runs that differ in rate and seed alone share their batches, each with an adapter
of its own. They are made in the order in which they matter, until the minutes are over.

After each epoch a run is scored on lines that no run has seen. Half of these choose a rate; what is
reported of the chosen one is its score on the other half.
"""

import argparse
import json
import logging
import math
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.support.report import origin
from benchmarks.support.workers import Pool, run_all
from benchmarks.training.study_grid import RATES, SEEDS, Cohort, cohorts
from benchmarks.training.study_lines import Lines, pack, unpack
from benchmarks.training.study_report import CohortResult, RunResult, report, results_in
from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.memory.matrices import SharedBases
from server.bases.base_files import load_base
from server.bases.model import BaseModel
from server.errors import TrainingFailed
from server.jobs.queue.train_options import TrainOptions
from server.training.run.batches import micro_batches
from server.training.run.defaults import plan_for
from server.training.run.examples import Example
from server.training.run.loss import counted_losses
from server.training.run.run_steps import take_step
from server.training.run.trainer import Trainer

_HELD_OUT = 12  # lines of a source that has no others
_TOKENS = {"cuda": 8192, "cpu": 2048}  # positions of one forward pass


@dataclass(frozen=True)
class BaseFiles:
    """Where a base is (see `load_base`), and its packed lines."""

    source: str
    lines: Path

    @classmethod
    def read(cls, argument: str) -> tuple[str, "BaseFiles"]:
        """NAME=BASE:FILE."""
        name, _, rest = argument.partition("=")
        source, _, lines = rest.rpartition(":")
        return name, cls(source, Path(lines))


@dataclass
class _Learner:
    """One run of a cohort, and its scores so far."""

    trainer: Trainer
    rate: float
    seed: int
    fresh: list[Example]
    curve: list[tuple[float, ...]] = field(default_factory=list)
    diverged: bool = False

    def score(self, most: int) -> None:
        with self.trainer.adapter.active():
            self.curve.append(scores(self.trainer.base, self.fresh, most))


def measure(base: BaseModel, shared: SharedBases, lines: Lines, cohort: Cohort) -> CohortResult:
    """Train every run of a cohort, side by side."""
    started = time.monotonic()
    most = _TOKENS[base.device.type]
    lines = lines if cohort.opening else lines.without_opening()
    learners = [
        _learner(base, shared, lines, cohort, rate, seed)
        for seed in SEEDS
        for rate in RATES[cohort.method]
    ]
    untrained = [scores(base, one.fresh, most) for one in learners[:: len(RATES[cohort.method])]]
    per_epoch = math.ceil(cohort.reading.lines / cohort.reading.batch)
    for _ in range(cohort.reading.epochs):
        for _ in range(per_epoch):
            _step([one for one in learners if not one.diverged], most)
        for one in learners:
            if not one.diverged:
                one.score(most)
    return CohortResult(
        cohort,
        steps=per_epoch * cohort.reading.epochs,
        tokens=sum(one.trainer.trained_tokens for one in learners) // len(learners),
        seconds=round(time.monotonic() - started, 2),
        untrained=[list(each) for each in untrained],
        runs=[RunResult(one.rate, one.seed, [list(it) for it in one.curve]) for one in learners],
    )


def _step(going: Sequence[_Learner], most: int) -> None:
    results = take_step([one.trainer for one in going], most) if going else []
    for one, result in zip(going, results, strict=True):
        if isinstance(result, Exception) and not isinstance(result, TrainingFailed):
            raise result
        one.diverged = isinstance(result, TrainingFailed)


def scores(base: BaseModel, examples: Sequence[Example], most: int) -> tuple[float, ...]:
    """Mean loss of a counted token and share of answers that are right to the last token, of each
    half of the examples: the first is for choosing."""
    losses, exact = [0.0] * len(examples), [False] * len(examples)
    lengths = [len(example.tokens) - 1 for example in examples]
    with torch.no_grad():
        for part in micro_batches(range(len(examples)), lengths, most):
            chosen = [examples[index] for index in part]
            counts = [example.num_targets for example in chosen]
            each, hits = counted_losses(base, chosen)
            by_example = zip(each.cpu().split(counts), hits.cpu().split(counts), strict=True)
            for index, (loss, right) in zip(part, by_example, strict=True):
                losses[index], exact[index] = float(loss.double().sum()), bool(right.all())
    found: list[float] = []
    for half in (slice(0, None, 2), slice(1, None, 2)):
        tokens = sum(example.num_targets for example in examples[half])
        share = sum(exact[half]) / len(exact[half])
        found += [round(sum(losses[half]) / tokens, 5), round(share, 4)]
    return tuple(found)


def _learner(
    base: BaseModel,
    shared: SharedBases,
    lines: Lines,
    cohort: Cohort,
    rate: float,
    seed: int,
) -> _Learner:
    reading = cohort.reading
    pool = list(lines.pool)
    random.Random(seed).shuffle(pool)
    fresh, pool = (lines.fresh, pool) if lines.fresh else (pool[:_HELD_OUT], pool[_HELD_OUT:])
    options = TrainOptions(
        method=cohort.method,
        learning_rate=rate,
        n_epochs=reading.epochs,
        batch_size=reading.batch,
        validation_split=0.0,
    )
    plan = plan_for(options, seed=seed, max_rank=1024, lines=reading.lines)
    adapter = TrainableAdapter(
        base, plan.method, plan.rank, plan.basis_seed, plan.targets, plan.adapter_options(), shared
    )
    return _Learner(
        Trainer(base, adapter, pool[: reading.lines], [], plan), rate, seed, list(fresh)
    )


def make_work(files: Mapping[str, BaseFiles], device: str) -> Callable[[Cohort], CohortResult]:
    """What one process does. It loads a base when it first needs it."""
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()

    @cache
    def loaded(name: str) -> tuple[BaseModel, SharedBases, dict[str, Lines]]:
        base = load_base(files[name].source, device=device)
        return base, SharedBases(base), unpack(files[name].lines)

    def work(cohort: Cohort) -> CohortResult:
        base, shared, lines = loaded(cohort.base)
        return measure(base, shared, lines[cohort.reading.source], cohort)

    return work


def do_run(options: argparse.Namespace) -> None:
    """Go through the grid until it is done or time is up."""
    print(origin(), flush=True)
    start = time.monotonic()
    files: dict[str, BaseFiles] = dict(options.bases)
    openings = {name: unpack(each.lines)["pirate"].opening > 0 for name, each in files.items()}
    gpus = torch.cuda.device_count()
    pool: Pool[Cohort, CohortResult] = Pool(
        processes=options.processes * max(1, gpus),
        gpus=gpus,
        begin_until=start + options.minutes * 60 - options.run_seconds,
        stop_at=start + options.minutes * 60,
        make_work=partial(make_work, files),
    )
    planned = [one for one in cohorts(openings) if one.method in options.methods]
    done = {result.cohort: result for result in results_in([options.results])}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a") as results:

        def note(result: CohortResult) -> None:
            print(json.dumps(asdict(result)), file=results, flush=True)
            passed = time.monotonic() - start
            print(f"{passed:5.0f} s  {result.seconds:5.1f} s  {result.cohort}", flush=True)

        failed = run_all(pool, lambda _: planned, done, note)
    left = sum(cohort not in done for cohort in planned)
    print(f"{len(done)} cohorts done, {left} left, {len(failed)} failed")
    for cohort, trace in failed.items():
        print(f"--- {cohort}\n{trace[-1500:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("--data", type=Path, required=True)
    packing.add_argument("--base", required=True)
    packing.add_argument("--lines", type=Path, required=True)
    packing.set_defaults(do=lambda it: pack(it.data, it.base, it.lines))
    running = commands.add_parser("run")
    running.add_argument("--bases", type=BaseFiles.read, nargs="+", required=True)
    running.add_argument("--results", type=Path, required=True)
    running.add_argument("--minutes", type=float, default=7.0)
    running.add_argument("--run-seconds", type=float, default=20.0, help="none begins so late")
    running.add_argument("--processes", type=int, default=1, help="on each GPU, or on the CPU")
    running.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES))
    running.set_defaults(do=do_run)
    reporting = commands.add_parser("report")
    reporting.add_argument("results", type=Path, nargs="+")
    reporting.set_defaults(do=lambda it: print(report(results_in(it.results))))
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
