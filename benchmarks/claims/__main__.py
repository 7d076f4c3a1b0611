"""The papers' claims on a pretrained model: every method on nine tasks, beside PEFT's.

    encode --base BASE --data DIR --tokens FILE     the tasks as tokens, once
    grid --base BASE --tokens FILE --results FILE --answers FILE    every run; call again to go on
    speed --base BASE --tokens FILE --results FILE  step time and memory, ours and PEFT's by turns
    score --base BASE --data DIR --results FILE --answers FILE --scores FILE    of written answers
    report --results FILE --scores FILE --speed FILE --out DIR    tables and plots

BASE is what `verandah serve --model` takes. DIR holds one folder per data set: `glue`, `e2e`,
`snips`, `llm_adapters`, `gsm8k`. The last two commands need the extra `e2e` and, for METEOR, Java.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.claims import grid
from benchmarks.claims.data import tasks
from benchmarks.claims.learning.speed import ALONE, PAIRED, alone, by_turns
from benchmarks.claims.runs import Outcome, Run, outcomes, records
from benchmarks.claims.work import make_work, quiet
from benchmarks.support.report import origin
from benchmarks.support.workers import Pool, run_all
from server.bases.base_files import outline_base
from server.bases.tokenizer import load_tokenizer
from server.training.run.examples import LineEncoder


def do_encode(options: argparse.Namespace) -> None:
    encoder = LineEncoder.of(outline_base(options.base), load_tokenizer(options.base))
    tasks.save(tasks.encode(options.data, encoder), options.tokens)


def do_grid(options: argparse.Namespace) -> None:
    """Go through the grid until it is done or time is up."""
    print(origin(), f"peft:     {version('peft')}", sep="\n", flush=True)
    start = time.monotonic()
    gpus = torch.cuda.device_count()
    pool: Pool[Run, Outcome] = Pool(
        processes=options.per_gpu * max(1, gpus),
        gpus=gpus,
        begin_until=start + options.minutes * 60 - options.run_seconds,
        stop_at=start + options.minutes * 60,
        make_work=partial(
            make_work, options.base, options.tokens, options.lines, not options.plain
        ),
    )
    done = outcomes([options.results])
    for file in (options.results, options.answers):
        file.parent.mkdir(parents=True, exist_ok=True)
    there = set(tasks.load(options.tokens, options.tasks))

    def wanted(done: grid.Done) -> list[Run]:
        runs = [run for run in grid.all_runs(done) if run.task in there]
        return [run.at(steps=min(2, run.steps)) for run in runs] if options.lines else runs

    with options.results.open("a") as results, options.answers.open("a") as answers:

        def note(outcome: Outcome) -> None:
            print(outcome.line(), file=results, flush=True)
            if outcome.answers:
                record = {"run": asdict(outcome.run), "answers": outcome.answers}
                print(json.dumps(record, separators=(",", ":")), file=answers, flush=True)
            passed, loss = time.monotonic() - start, outcome.tune_loss
            line = f"{passed:5.0f} s  {outcome.seconds:5.1f} s  {outcome.trained:>10,}  {loss:.4f}"
            shown = outcome.scores.get("accuracy", math.nan)
            print(f"{line}  {shown:5.1f} %  {outcome.run}", flush=True)

        failed = run_all(pool, wanted, done, note)
    left = sum(run not in done for run in wanted(done))
    print(f"{len(done)} runs done, {left} left, {len(failed)} failed")
    for run, trace in failed.items():
        print(f"--- {run}\n{trace[-1500:]}")


def do_speed(options: argparse.Namespace) -> None:
    """Each method alone, then ours and PEFT's by turns, as lines of JSON."""
    quiet()
    end = time.monotonic() + options.minutes * 60
    print(origin(), f"peft:     {version('peft')}", sep="\n", flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = tasks.load(options.tokens, ["e2e"])["e2e"].train
    part, parts = options.part
    with options.results.open("a") as results:
        for run in ALONE[part::parts]:
            if time.monotonic() > end:
                return
            pace = alone(run, options.base, rows, device, options.rounds)
            print(json.dumps({"run": asdict(run), **asdict(pace)}), file=results, flush=True)
            print(f"{pace.step_ms:7.2f} ms  {pace.peak_mib:7.0f} MiB  {run}", flush=True)
        for run in PAIRED[part::parts]:
            if time.monotonic() > end:
                return
            pair = by_turns(run, options.base, rows, device, options.rounds)
            print(json.dumps(pair), file=results, flush=True)
            print(f"{run}: speed {pair['speed_ratio']:.3f}, memory {pair['memory_ratio']:.3f}")


def do_score(options: argparse.Namespace) -> None:
    """Score the written answers that the tables show and no earlier call has scored."""
    from benchmarks.claims.shown.written import (
        score,  # the rest does without Java and the extra `e2e`
    )

    shown = set(grid.reported(outcomes([options.results])))
    scored = {Run.of(record["run"]) for record in records([options.scores])}
    tokenizer = load_tokenizer(options.base)
    with options.scores.open("a") as scores:
        for run, result in score(options.data, options.answers, tokenizer, shown - scored):
            print(json.dumps({"run": asdict(run), "scores": result}), file=scores, flush=True)
            print(run, result, flush=True)


def do_report(options: argparse.Namespace) -> None:
    """Print the tables, and write the plots to a folder."""
    from benchmarks.claims.shown import plots, tables  # the rest does without matplotlib

    done = outcomes([options.results])
    scores = {Run.of(record["run"]): record["scores"] for record in records([options.scores])}
    speed = list(records([options.speed]))
    print(*tables.all_tables(done, scores, speed), sep="\n\n")
    plots.draw(done, scores, options.out)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    commands = top.add_subparsers(required=True)

    def command(name: str, do: Callable[[argparse.Namespace], None], *files: str) -> None:
        one = parsers[name] = commands.add_parser(name)
        one.set_defaults(do=do)
        for file in files:
            one.add_argument(f"--{file}", type=str if file == "base" else Path, required=True)

    parsers: dict[str, argparse.ArgumentParser] = {}
    command("encode", do_encode, "base", "data", "tokens")
    command("grid", do_grid, "base", "tokens", "results", "answers")
    command("speed", do_speed, "base", "tokens", "results")
    command("score", do_score, "base", "data", "results", "answers", "scores")
    command("report", do_report, "results", "scores", "speed", "out")
    one = parsers["grid"]
    one.add_argument("--per-gpu", type=int, default=5, help="processes that share a GPU")
    one.add_argument("--minutes", type=float, default=600.0)
    one.add_argument("--run-seconds", type=float, default=20, help="begin none nearer to the end")
    one.add_argument("--plain", action="store_true", help="start kernels one by one")
    one.add_argument("--tasks", nargs="*", choices=grid.TASKS, default=grid.TASKS)
    one.add_argument("--lines", type=int, default=0, help="so many only, and 2 steps, to try it")
    one = parsers["speed"]
    one.add_argument("--rounds", type=int, default=5)
    one.add_argument("--minutes", type=float, default=600.0)
    one.add_argument("--part", type=int, nargs=2, default=(0, 1), help="1 2: the second half")
    return top


def main() -> None:
    options = parser().parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
