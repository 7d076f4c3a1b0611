"""How many epochs suit a small file, and which state is worth publishing: real files, Porch.

    python -m benchmarks.training.auto_study --data DIR [--minutes 14] [--results runs.jsonl]
    python -m benchmarks.training.auto_study --report runs.jsonl

DIR holds `snips` (spoken commands, to be answered by their intent and slots) and `e2e` (meanings,
to be written as a sentence). Each run trains as a job of so many lines would, all but its epochs
left to the defaults, and is scored on other lines of the same source that no run has seen. Runs are
made in the order in which they matter, until the minutes are over; what is in the results stays.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.report import origin, table
from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.memory.matrices import SharedBases
from server.bases.base_files import load_base
from server.bases.model import BaseModel
from server.bases.tokenizer import load_tokenizer
from server.jobs.queue.train_options import TrainOptions
from server.training.run.batches import held_out
from server.training.run.defaults import epochs_for, plan_for
from server.training.run.examples import Example, LineEncoder, build_examples
from server.training.run.run_steps import run
from server.training.run.trainer import Trainer

SOURCES = ("snips", "e2e")
EPOCHS = {10: (8, 15, 30), 30: (5, 11, 20), 100: (2, 3, 6), 300: (1, 2, 4)}
"""How often a file is read, by its lines: as the rule then said, more often and less."""
_FRESH = 40  # lines that no run learns from
_SEED = 7


@dataclass(frozen=True)
class Run:
    """A file, how often it is read, and with which method."""

    source: str
    lines: int
    epochs: int
    method: str = "vera"


@dataclass(frozen=True)
class Outcome:
    """Losses on fresh lines: of the base, of the last state, and of the one that the run's own
    held-out lines like best. `own_*` are on those."""

    base: float
    last: float
    best: float
    own_base: float
    own_best: float
    seconds: float


def runs() -> Iterator[Run]:
    """One source after the other, what takes the least first; then other methods by the rule."""
    for source in SOURCES:
        grid = [Run(source, lines, each) for lines, epochs in EPOCHS.items() for each in epochs]
        yield from sorted(grid, key=lambda one: one.lines * one.epochs)
    others = ("lora", "asymmetric-lora", "randlora")
    yield from (Run(SOURCES[0], it, epochs_for(it), method) for method in others for it in EPOCHS)


def records_of(folder: Path, source: str) -> list[dict[str, object]]:
    """Lines of chat, in a random order that is always the same."""
    pairs = _snips(folder / "snips") if source == "snips" else _e2e(folder / "e2e" / "train.txt")
    random.Random(_SEED).shuffle(pairs)
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in pairs
    ]


def _snips(folder: Path) -> list[tuple[str, str]]:
    pairs = []
    for path in sorted(folder.glob("train_*_full.json")):
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        for intent, lines in content.items():
            for line in lines:
                parts = line["data"]
                text = "".join(part["text"] for part in parts).strip()
                slots = [f"{p['entity']}: {p['text']}" for p in parts if "entity" in p]
                pairs.append((text, "; ".join([intent, *slots])))
    return pairs


def _e2e(path: Path) -> list[tuple[str, str]]:
    lines = [line.split("||") for line in path.read_text(encoding="utf-8").splitlines()]
    return [(line[0].strip(), line[1].strip()) for line in lines if len(line) == 2]


def measure(base: BaseModel, shared: SharedBases, examples: Sequence[Example], one: Run) -> Outcome:
    """Train as a job of that many lines would."""
    started = time.monotonic()
    fresh, file = examples[:_FRESH], examples[_FRESH : _FRESH + one.lines]
    options = TrainOptions(method=one.method, n_epochs=one.epochs)
    plan = plan_for(options, seed=_SEED, max_rank=1024, lines=one.lines)
    scored = held_out(len(file), plan.validation_split, seed=plan.seed)
    train = [example for index, example in enumerate(file) if index not in scored]
    valid = [example for index, example in enumerate(file) if index in scored]
    adapter = TrainableAdapter(
        base, plan.method, plan.rank, plan.basis_seed, plan.targets, plan.adapter_options(), shared
    )
    trainer = Trainer(base, adapter, train, valid, plan)
    untrained = trainer.score(fresh).loss
    own: list[float] = []
    best = adapter.tensors()
    for metrics in run(trainer):
        if metrics.valid_loss is not None:
            own.append(metrics.valid_loss)
            best = adapter.tensors() if own[-1] == min(own[1:], default=0.0) else best
    last = picked = trainer.score(fresh).loss
    if own[-1] != min(own[1:]):
        adapter.load_tensors(best)
        picked = trainer.score(fresh).loss
    return Outcome(untrained, last, picked, own[0], min(own[1:]), time.monotonic() - started)


def _encoded(records: Sequence[dict[str, object]], encoder: LineEncoder) -> list[Example]:
    used = records[: _FRESH + max(EPOCHS)]
    built = build_examples(enumerate(used), encoder)
    return [example for examples in built for example in examples]


def report(path: Path) -> str:
    """One row for each source, length and method; the rule's own epochs are in bold."""
    results = [(Run(**line["run"]), Outcome(**line["outcome"])) for line in _read(path)]
    order = {source: place for place, source in enumerate(SOURCES)}
    results.sort(key=lambda one: (one[0].method != "vera", order[one[0].source], one[0].lines))
    rows: list[Sequence[object]] = []
    kinds = groupby(results, lambda one: (one[0].method, one[0].source, one[0].lines))
    for (method, source, lines), group in kinds:
        each = sorted(group, key=lambda one: one[0].epochs)
        cells = [_cell(one, outcome) for one, outcome in each]
        base = f"{each[0][1].base:.2f}"
        rows.append((method, source, lines, base, "; ".join(cells)))
    return table(("method", "file", "lines", "base", "epochs: last / best by its own tenth"), rows)


def _cell(one: Run, outcome: Outcome) -> str:
    text = f"{one.epochs}: {outcome.last:.2f} / {outcome.best:.2f}"
    return f"**{text}**" if one.epochs == epochs_for(one.lines) else text


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--results", type=Path, default=Path("auto_study.jsonl"))
    parser.add_argument("--report", type=Path, help="only show these results")
    options = parser.parse_args()
    if options.data is not None:
        _study(options.data, options.results, options.minutes * 60)
    print(origin(), report(options.report or options.results), sep="\n\n")


def _study(data: Path, results: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    torch.set_num_threads(1)
    base = load_base("porch", device="cpu")
    encoder = LineEncoder.of(base, load_tokenizer("porch"))
    shared = SharedBases(base)
    examples = {source: _encoded(records_of(data, source), encoder) for source in SOURCES}
    done = [Run(**line["run"]) for line in _read(results)]
    for one in runs():
        if one in done or time.monotonic() > until:
            continue
        outcome = measure(base, shared, examples[one.source], one)
        with results.open("a") as file:
            file.write(json.dumps({"run": asdict(one), "outcome": asdict(outcome)}) + "\n")
        print(one, outcome, flush=True)


if __name__ == "__main__":
    main()
