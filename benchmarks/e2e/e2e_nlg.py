"""Every method on E2E NLG with Porch: quality, size, time and memory, compared with PEFT's.

    encode --data DIR --tokens FILE     the texts as tokens, once
    grid --tokens FILE --results FILE --texts FILE    every run; call it again to go on
    speed --tokens FILE --results FILE  step time and memory, ours and PEFT's by turns
    score --data DIR --texts FILE... --scores FILE    BLEU, NIST, METEOR, ROUGE-L and CIDEr
    report --results FILE... --scores FILE --speed FILE --out DIR     tables and plots

The last two need the extra `e2e` and, for METEOR, Java.
"""

import argparse
import gc
import json
import logging
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.e2e.e2e_data import Splits, encode, references
from benchmarks.e2e.e2e_grid import all_runs, reported
from benchmarks.e2e.e2e_training import answers, train
from benchmarks.e2e.learners import build
from benchmarks.e2e.runs import Outcome, Run, outcomes, records
from benchmarks.e2e.speed import ALONE, PAIRED, alone, by_turns
from benchmarks.e2e.workers import Pool, run_all
from benchmarks.support.report import origin
from server.bases.base_files import outline_base
from server.bases.tokenizer import ChatTokenizer, load_tokenizer
from server.training.run.examples import LineEncoder

PORCH = "porch"


def make_work(tokens: Path, only: int, beams: int, device: str) -> Callable[[Run], Outcome]:
    """What a process does with a run; `only` so many training examples if it is not 0."""
    quiet()
    splits = Splits.load(tokens)
    if only:
        splits = Splits(splits.train.first(only), splits.valid.first(only), splits.test.first(2))
    return partial(work, splits, load_tokenizer(PORCH), device, beams)


def work(splits: Splits, tokenizer: ChatTokenizer, device: str, beams: int, run: Run) -> Outcome:
    """Train, score on the validation split, and answer the test prompts."""
    gc.collect()  # the last run's model and recordings hang in cycles
    start = time.perf_counter()
    stream = torch.cuda.Stream() if device == "cuda" else None
    with torch.cuda.stream(stream) if stream else nullcontext():
        learner = build(run, PORCH, device)
        scored = list(train(learner, splits, run, stream))
        trained = time.perf_counter()
        texts = answers(learner, splits.test, tokenizer, beams=beams)
    last = scored[-1]
    return Outcome(
        run=run,
        valid_loss=last.valid_loss if last.valid_loss == last.valid_loss else float("inf"),
        curve=tuple((state.step, state.valid_loss) for state in scored),
        train_loss=last.train_loss,
        trained=learner.trained,
        bytes=learner.bytes_at_rest(),
        steps=last.step,
        seconds=trained - start,
        texts=tuple(texts),
    )


def quiet() -> None:
    """TF32 products as everywhere in the measurement, and no chatter of libraries."""
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()


def do_encode(options: argparse.Namespace) -> None:
    encoder = LineEncoder.of(outline_base(PORCH), load_tokenizer(PORCH))
    encode(options.data, encoder).save(options.tokens)


def do_grid(options: argparse.Namespace) -> None:
    """Go through the grid until it is done or time is up."""
    print(origin(), f"peft:     {version('peft')}", sep="\n", flush=True)
    start = time.monotonic()
    gpus = torch.cuda.device_count()
    pool = Pool(
        processes=options.per_gpu * max(1, gpus),
        gpus=gpus,
        begin_until=start + options.minutes * 60 - options.run_seconds,
        stop_at=start + options.minutes * 60,
        make_work=partial(make_work, options.tokens, options.examples, options.beams),
    )
    done = outcomes([options.results])
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a") as results, options.texts.open("a") as texts:

        def note(outcome: Outcome) -> None:
            print(outcome.line(), file=results, flush=True)
            record = {"run": asdict(outcome.run), "texts": outcome.texts}
            print(json.dumps(record, ensure_ascii=False), file=texts, flush=True)
            passed = time.monotonic() - start
            loss, trained = outcome.valid_loss, outcome.trained
            line = f"{passed:5.0f} s  {outcome.seconds:5.1f} s  {trained:>10,}  {loss:.4f}"
            print(f"{line}  {outcome.run}", flush=True)

        failed = run_all(pool, all_runs, done, note)
    left = sum(run not in done for run in all_runs(done))
    print(f"{len(done)} runs done, {left} left, {len(failed)} failed")
    for run, trace in failed.items():
        print(f"--- {run}\n{trace[-1500:]}")


def do_speed(options: argparse.Namespace) -> None:
    """Each method alone, then ours and PEFT's by turns, as lines of JSON."""
    quiet()
    print(origin(), f"peft:     {version('peft')}", sep="\n", flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    splits = Splits.load(options.tokens)
    part, parts = options.part
    changes = {"batch": options.batch, "dtype": options.dtype}
    with options.results.open("a") as results:
        for run in (run.at(**changes) for run in ALONE[part::parts]):
            pace = alone(run, splits, device, options.rounds)
            print(json.dumps({"run": asdict(run), **asdict(pace)}), file=results, flush=True)
            print(f"{pace.step_ms:7.2f} ms  {pace.peak_mib:7.0f} MiB  {run}", flush=True)
        for run in (run.at(**changes) for run in PAIRED[part::parts]):
            for replayed in (False, True) if device == "cuda" else (False,):
                pair = by_turns(run, splits, device, options.rounds, replayed=replayed)
                print(json.dumps(pair), file=results, flush=True)
                print(f"{run}, replayed {replayed}: speed {pair['speed_ratio']:.3f}", end="  ")
                print(f"memory {pair['memory_ratio']:.3f}  {pair['speed_ratios']}", flush=True)


def do_score(options: argparse.Namespace) -> None:
    """Score what the tables show and no earlier call has scored."""
    from benchmarks.e2e.scores import Scorer  # the rest does without Java and the extra `e2e`

    done = outcomes([options.results])
    scored = {Run.of(record["run"]) for record in records([options.scores])}
    left = set(reported(done)) - scored
    scorer = Scorer(list(references(options.data).values()))
    with options.scores.open("a") as scores:
        for record in records([options.texts]):
            run = Run.of(record["run"])
            if run in left:
                result = {"run": record["run"], "scores": scorer.scores(record["texts"])}
                print(json.dumps(result), file=scores, flush=True)
                print(run, result["scores"], flush=True)


def do_report(options: argparse.Namespace) -> None:
    """Print the tables, and write plots and defaults to a folder."""
    from benchmarks.e2e import e2e_report, plots  # the rest does without matplotlib

    done = outcomes([options.results])
    scores = {Run.of(record["run"]): record["scores"] for record in records([options.scores])}
    speed = list(records([options.speed]))
    tables = [
        e2e_report.main_table(done, scores, speed),
        *(each(done, scores) for each in (e2e_report.matched_table, e2e_report.peft_table)),
        e2e_report.speed_table(speed),
        e2e_report.sweep_table(done),
    ]
    print(*tables, sep="\n\n")
    defaults = json.dumps(e2e_report.defaults(done), indent=1)
    (options.out / "e2e_defaults.json").write_text(f"{defaults}\n")
    plots.draw(done, scores, options.out)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__)
    commands = top.add_subparsers(required=True)
    one = commands.add_parser("encode")
    one.set_defaults(do=do_encode)
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--tokens", type=Path, required=True)
    one = commands.add_parser("grid")
    one.set_defaults(do=do_grid)
    for name in ("tokens", "results", "texts"):
        one.add_argument(f"--{name}", type=Path, required=True)
    one.add_argument("--per-gpu", type=int, default=5, help="processes that share a GPU")
    one.add_argument("--minutes", type=float, default=600.0)
    one.add_argument("--run-seconds", type=float, default=60, help="begin none nearer to the end")
    one.add_argument("--beams", type=int, default=1)
    one.add_argument("--examples", type=int, default=0, help="so many only, to try it out")
    one = commands.add_parser("score")
    one.set_defaults(do=do_score)
    for name in ("data", "results", "texts", "scores"):
        one.add_argument(f"--{name}", type=Path, required=True)
    one = commands.add_parser("speed")
    one.set_defaults(do=do_speed)
    one.add_argument("--tokens", type=Path, required=True)
    one.add_argument("--results", type=Path, required=True)
    one.add_argument("--rounds", type=int, default=7)
    one.add_argument("--batch", type=int, default=Run.batch)
    one.add_argument("--dtype", default=Run.dtype)
    one.add_argument("--part", type=int, nargs=2, default=(0, 1), help="2 4: the third quarter")
    one = commands.add_parser("report")
    one.set_defaults(do=do_report)
    for name in ("results", "scores", "speed", "out"):
        one.add_argument(f"--{name}", type=Path, required=True)
    return top


def main() -> None:
    options = parser().parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
