"""One run of the measurement as a value, and what came of it as a line of JSON. Knows no torch."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

Side = Literal["base", "ours", "peft", "full"]


@dataclass(frozen=True)
class Run:
    """What is trained and how, on which task; equal runs are the same run.

    Side "base" trains nothing.

    `seed` draws the order of the data and the random matrices. `options` are the method's own.
    `rate` is the peak learning rate.
    """

    task: str
    side: Side
    method: str
    rank: int
    rate: float
    seed: int = 0
    options: tuple[tuple[str, str | float], ...] = ()
    targets: tuple[str, ...] = ("all-linear",)
    steps: int = 150
    batch: int = 32
    dtype: str = "float32"

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Read back what `asdict` gave, through JSON."""
        values = {field.name: record[field.name] for field in fields(cls)}
        values["options"] = tuple((str(k), v) for k, v in values["options"])
        values["targets"] = tuple(values["targets"])
        return cls(**values)

    def at(self, **changes: Any) -> Self:
        """The same run but for some fields."""
        return replace(self, **changes)

    def __str__(self) -> str:
        options = "".join(f" {key}={value}" for key, value in self.options)
        targets = "" if self.targets == ("all-linear",) else f" on {','.join(self.targets)}"
        return (
            f"{self.task}: {self.side} {self.method} rank {self.rank}{options}{targets} "
            f"rate {self.rate:g} seed {self.seed}"
        )


def steps_of(task: str) -> int:
    """How long a run on a task is; its training lines are as many as it reads."""
    return 280 if task == "commonsense" else Run.steps


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    `tune_loss` is in nats per token of the answers, infinite if training diverged; `scores` are of
    the reported lines. `seconds` are of a process that shares its GPU with others: no measure of
    speed. `answers` are the tokens written after the reported prompts, kept in a file of their own.
    """

    run: Run
    tune_loss: float
    scores: Mapping[str, float]
    train_loss: float
    trained: int
    bytes: int
    seconds: float
    answers: tuple[tuple[int, ...], ...] = ()

    def line(self) -> str:
        """Without the answers."""
        record = asdict(self)
        del record["answers"]
        return json.dumps(record)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        values = {f.name: record[f.name] for f in fields(cls) if f.name != "answers"}
        values["run"] = Run.of(values["run"])
        return cls(**values)


def records(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The lines of those files that exist; a last line that was cut short is left out."""
    for file in files:
        if not file.exists():
            continue
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def outcomes(files: Iterable[Path]) -> dict[Run, Outcome]:
    """Read `Outcome.line`s back; the last of one run counts."""
    return {outcome.run: outcome for outcome in map(Outcome.of, records(files))}
