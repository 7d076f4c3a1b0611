"""The E2E NLG data as examples and as batches on a device. Knows no model and no method.

The folder holds what its authors published: `train.txt`, `valid.txt` and `test.txt`, lines of
`meaning||text` whose texts are split into words, and `devset.csv` and `testset_w_refs.csv`, the
same lines of the last two with their texts as people wrote them.
"""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.training.run.batches import epoch_batches
from server.training.run.examples import Example, LineEncoder

_JOINS = (
    (re.compile(r" ([.,;:!?%)])"), r"\1"),
    (re.compile(r"([(£$]) "), r"\1"),
    (re.compile(r" ?([-/]) ?"), r"\1"),
    (re.compile(r" (n't|'(?:s|re|ve|ll|d|m|t))\b", re.IGNORECASE), r"\1"),
)
_PAD_TO = 8  # row lengths are rounded up to it: few shapes, and the matrix units like it
_COUNTED = 0.6  # of a batch's positions, more than are counted in almost every batch

IGNORED: Final = -100
"""The target of a place that only fills up."""


def natural(text: str) -> str:
    """A text split into words, as people write it: "family - friendly ." to "family-friendly."

    97 % of the validation and test lines become exactly their published texts.
    """
    text = " ".join(text.split())
    for pattern, joined in _JOINS:
        text = pattern.sub(joined, text)
    return text


def prompt_of(meaning: str) -> str:
    """The prompt of every method: "name: The Vaults | Type: pub" and a line break."""
    return f"{natural(meaning)}\n"


def pairs(file: Path) -> list[tuple[str, str]]:
    """Meaning and text of each line of a `.txt` file, both as people write them."""
    split = (line.split("||") for line in file.read_text(encoding="utf-8").splitlines())
    return [(prompt_of(meaning), natural(text)) for meaning, text in split]


def written(file: Path) -> list[tuple[str, str]]:
    """Meaning and text of each line of a `.csv` file, as they stand there."""
    with file.open(encoding="utf-8", newline="") as lines:
        return [(row["mr"], " ".join(row["ref"].split())) for row in csv.DictReader(lines)]


def references(folder: Path) -> dict[str, list[str]]:
    """Of each of the 630 test meanings, by its prompt and in order: all texts that people wrote."""
    texts: dict[str, list[str]] = {}
    split = pairs(folder / "test.txt")
    for (prompt, _), (_, text) in zip(split, written(folder / "testset_w_refs.csv"), strict=True):
        texts.setdefault(prompt, []).append(text)
    return texts


@dataclass(frozen=True)
class Encoded:
    """Sequences laid end to end: row i is `tokens[starts[i]:starts[i + 1]]`, trained on from
    its place `prompts[i]` on."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    prompts: NDArray[np.int32]

    @classmethod
    def of(cls, rows: Sequence[Example]) -> "Encoded":
        lengths = [len(row.tokens) for row in rows]
        return cls(
            np.array([token for row in rows for token in row.tokens], np.int32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.array([row.counts.index(True) for row in rows], np.int32),
        )

    def __len__(self) -> int:
        return len(self.prompts)

    def first(self, count: int) -> "Encoded":
        """The first rows alone."""
        end = self.starts[: count + 1][-1]
        return Encoded(self.tokens[:end], self.starts[: count + 1], self.prompts[:count])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Of each row, without its last token, which is only predicted."""
        return np.diff(self.starts) - 1


@dataclass(frozen=True)
class Splits:
    """Train and valid to learn from and to score on; `test` are the prompts of the test set."""

    train: Encoded
    valid: Encoded
    test: Encoded

    def save(self, file: Path) -> None:
        arrays = {f"{name}_{part}": getattr(getattr(self, name), part) for name, part in _PARTS}
        np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, file: Path) -> "Splits":
        with np.load(file) as arrays:
            splits = [
                Encoded(*(arrays[f"{name}_{part}"] for part in ("tokens", "starts", "prompts")))
                for name in ("train", "valid", "test")
            ]
        return cls(*splits)


_PARTS = [(n, p) for n in ("train", "valid", "test") for p in ("tokens", "starts", "prompts")]


def encode(folder: Path, encoder: LineEncoder) -> Splits:
    """Read the folder. Validation texts are the published ones; texts of the test are not read."""
    train = pairs(folder / "train.txt")
    split = pairs(folder / "valid.txt")
    valid = [
        (prompt, text)
        for (prompt, _), (_, text) in zip(split, written(folder / "devset.csv"), strict=True)
    ]
    test = [(prompt, "") for prompt in references(folder)]
    return Splits(*(_encoded(lines, encoder) for lines in (train, valid, test)))


def _encoded(lines: Sequence[tuple[str, str]], encoder: LineEncoder) -> Encoded:
    records = ({"prompt": prompt, "completion": text} for prompt, text in lines)
    return Encoded.of([row for record in records for row in encoder.examples(record)])


@dataclass(frozen=True)
class Batch:
    """`ids` [rows, longest], zeros at the right; `places` of the counted tokens' predictions among
    the flattened positions, and their `targets`, both filled up with what is ignored; `count` of
    the counted tokens, on the device, where `num_targets` is the same and `num_tokens` are read."""

    ids: Tensor
    places: Tensor
    targets: Tensor
    count: Tensor
    num_targets: int
    num_tokens: int

    def copy_from(self, other: "Batch") -> None:
        """Take the content of a batch of the same shapes."""
        for name in ("ids", "places", "targets", "count"):
            getattr(self, name).copy_(getattr(other, name))

    def clone(self) -> "Batch":
        """The same in memory of its own."""
        own = {name: getattr(self, name).clone() for name in ("ids", "places", "targets", "count")}
        return replace(self, **own)


class Batches:
    """Batches of one split, built on the CPU and copied to the device."""

    def __init__(self, rows: Encoded, device: torch.device) -> None:
        self._rows = rows
        self._lengths = rows.lengths
        self._device = device

    def epoch(self, size: int, *, seed: int, epoch: int) -> list[list[int]]:
        """The order of one epoch: like lengths together, the same for every method."""
        return epoch_batches(self._lengths.tolist(), size, seed=seed, epoch=epoch)

    def in_order(self, size: int) -> Iterator[Batch]:
        """Every row once, like lengths together."""
        order = np.argsort(self._lengths, kind="stable").tolist()
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size])

    def batch(self, indices: Sequence[int]) -> Batch:
        """Few shapes are different: they depend on the longest row, rounded up."""
        rows, lengths = self._rows, self._lengths
        longest = _rounded(max(int(lengths[i]) for i in indices))
        ids = np.zeros((len(indices), longest), np.int64)
        places, targets = [], []
        for row, index in enumerate(indices):
            start, length, prompt = rows.starts[index], lengths[index], rows.prompts[index]
            ids[row, :length] = rows.tokens[start : start + length]
            places.append(np.arange(prompt - 1, length) + row * longest)
            targets.append(rows.tokens[start + prompt : start + length + 1])
        count = sum(map(len, targets))
        usual = len(indices) * _rounded(_COUNTED * longest)
        size = usual if count <= usual else len(indices) * longest
        return Batch(
            self._move(ids),
            self._move(_filled(places, size, 0)),
            self._move(_filled(targets, size, IGNORED)),
            torch.full((), float(count), device=self._device),
            count,
            int(sum(lengths[i] for i in indices)),
        )

    def _move(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def _rounded(number: float) -> int:
    return math.ceil(number / _PAD_TO) * _PAD_TO


def _filled(parts: Sequence[NDArray[np.integer[Any]]], size: int, filler: int) -> NDArray[np.int64]:
    filled = np.full(size, filler, np.int64)
    joined = np.concatenate(parts)
    filled[: len(joined)] = joined
    return filled
