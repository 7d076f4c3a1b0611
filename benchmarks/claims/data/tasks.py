"""The tasks as tokens, in one file. Knows no model and no method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.claims.data.rows import Encoded
from benchmarks.claims.data.task_texts import GROUPS, READERS, Line
from benchmarks.claims.runs import Run, steps_of
from server.bases.tokenizer import ChatTokenizer
from server.training.run.examples import Example, LineEncoder

_LONGEST = 192  # tokens of a training line; the longer ones are left out
_PARTS = ("train", "tune", "test")

WRITTEN: Mapping[str, int] = {"e2e": 80, "gsm8k": 160}
"""Tasks whose answers are written, and how many tokens an answer may have."""


@dataclass(frozen=True)
class Task:
    """`train` to learn from, `tune` to choose rates on, `test` for what is reported. The test rows
    of a written task are prompts alone."""

    name: str
    train: Encoded
    tune: Encoded
    test: Encoded

    @property
    def written(self) -> int:
        """How many tokens an answer may have; 0: the answer is chosen."""
        return WRITTEN.get(self.name, 0)

    def first(self, count: int) -> "Task":
        """A small one, to try things out."""
        return Task(self.name, *(getattr(self, part).first(count) for part in _PARTS))


def encode(folder: Path, encoder: LineEncoder) -> list[Task]:
    """Read every task. Raises ValueError for answers that their tokens do not tell apart."""
    tasks = []
    for name, read in READERS.items():
        texts, most = read(folder), steps_of(name) * Run.batch
        train = _encoded(texts.train, encoder, most, _LONGEST)
        test = texts.test
        if name in WRITTEN:
            test = [Line(line.prompt, "") for line in test]
        tasks.append(Task(name, train, _encoded(texts.tune, encoder), _encoded(test, encoder)))
    return tasks


def save(tasks: Sequence[Task], file: Path) -> None:
    parts = [getattr(task, part).arrays(f"{task.name}.{part}") for task in tasks for part in _PARTS]
    np.savez_compressed(file, **{name: each for arrays in parts for name, each in arrays.items()})


def load(file: Path, names: Sequence[str] = ()) -> dict[str, Task]:
    """The tasks of those names; no name: all."""
    with np.load(file) as arrays:
        there = {name.partition(".")[0] for name in arrays.files}
        wanted = [name for name in names or READERS if name in there]
        return {
            name: Task(name, *(Encoded.read(arrays, f"{name}.{part}") for part in _PARTS))
            for name in wanted
        }


def _encoded(
    lines: Sequence[Line], encoder: LineEncoder, most: int | None = None, longest: int = 10**6
) -> Encoded:
    rows: list[Example] = []
    kept: list[Line] = []
    for line in lines:
        if len(rows) == most:
            break
        (row,) = encoder.examples({"prompt": line.prompt, "completion": line.answer})
        if len(row.tokens) <= longest:
            rows.append(row)
            kept.append(line)
    if not kept or not kept[0].choices:
        return Encoded.of(rows)
    decides, choices = [], []
    for row, line in zip(rows, kept, strict=True):
        place, tokens = deciding(line.choices, encoder.tokenizer)
        start = row.counts.index(True)
        if row.tokens[start + place] != tokens[line.choices.index(line.answer)]:
            raise ValueError(f"the answer {line.answer!r} has other tokens behind {line.prompt!r}")
        decides.append(start + place)
        choices.append(tokens)
    gold = [line.choices.index(line.answer) for line in kept]
    groups = [GROUPS.index(line.group) if line.group else 0 for line in kept]
    return Encoded.of(rows, decides, choices, gold, groups)


def deciding(choices: Sequence[str], tokenizer: ChatTokenizer) -> tuple[int, list[int]]:
    """The place in an answer where the first tokens are that tell the choices apart, and these.

    Raises:
        ValueError: no one place tells all of them apart.
    """
    encoded = [tokenizer.encode(choice) for choice in choices]
    for place, tokens in enumerate(zip(*encoded, strict=False)):
        if len(set(tokens)) == len(choices):
            return place, list(tokens)
        if len(set(tokens)) > 1:
            break
    raise ValueError(f"no one token tells the answers {list(choices)} apart")
