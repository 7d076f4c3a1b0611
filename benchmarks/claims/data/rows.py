"""Sequences of tokens at rest and as batches on a device. Knows no task, model or method."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.training.run.batches import epoch_batches
from server.training.run.examples import Example

_PAD_TO = 16  # row lengths are rounded up to it: few shapes, and the matrix units like it

IGNORED: Final = -100
"""The target of a place that only fills up."""

NO_CHOICE: Final = -1
"""Fills up `Encoded.choices` where a row has fewer of them."""


@dataclass(frozen=True)
class Encoded:
    """Sequences laid end to end: row i is `tokens[starts[i]:starts[i + 1]]`, trained on from
    its place `prompts[i]` on.

    Where an answer is chosen among a few, `choices[i]` are the tokens that tell them apart, at the
    row's place `decides[i]`, and `gold[i]` is the number of the right one. `groups[i]` is the
    number of the data set that the row is from.
    """

    tokens: NDArray[np.uint16]
    starts: NDArray[np.int32]
    prompts: NDArray[np.int16]
    decides: NDArray[np.int16]
    choices: NDArray[np.int32]
    gold: NDArray[np.int8]
    groups: NDArray[np.int8]

    @classmethod
    def of(
        cls,
        rows: Sequence[Example],
        decides: Sequence[int] = (),
        choices: Sequence[Sequence[int]] = (),
        gold: Sequence[int] = (),
        groups: Sequence[int] = (),
    ) -> Self:
        lengths = [len(row.tokens) for row in rows]
        width = max(map(len, choices), default=0)
        filled = [[*each, *[NO_CHOICE] * (width - len(each))] for each in choices]
        return cls(
            np.array([token for row in rows for token in row.tokens], np.uint16),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            np.array([row.counts.index(True) for row in rows], np.int16),
            np.array(decides, np.int16),
            np.array(filled, np.int32).reshape(len(choices), width),
            np.array(gold, np.int8),
            np.array(groups or [0] * len(rows), np.int8),
        )

    def __len__(self) -> int:
        return len(self.prompts)

    def first(self, count: int) -> Self:
        """The first rows alone."""
        end = self.starts[: count + 1][-1]
        parts = {f.name: getattr(self, f.name)[:count] for f in fields(self)}
        return replace(
            self, **parts | {"tokens": self.tokens[:end], "starts": self.starts[: count + 1]}
        )

    def prompt(self, row: int) -> list[int]:
        start = self.starts[row]
        return [int(token) for token in self.tokens[start : start + self.prompts[row]]]

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return int(self.tokens[self.starts[1] - 1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Of each row, without its last token, which is only predicted."""
        return np.diff(self.starts).astype(np.int64) - 1

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        return {f"{name}.{f.name}": getattr(self, f.name) for f in fields(self)}

    @classmethod
    def read(cls, arrays: Any, name: str) -> Self:
        return cls(**{f.name: arrays[f"{name}.{f.name}"] for f in fields(cls)})


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
        self.rows = rows
        self._lengths = rows.lengths
        self._most = int((self._lengths + 1 - rows.prompts).max())  # counted tokens of one row
        self._device = device

    def epoch(self, size: int, *, seed: int, epoch: int) -> list[list[int]]:
        """The order of one epoch: like lengths together, the same for every method. A last batch
        that is not full is left out, because it would have a shape of its own."""
        batches = epoch_batches(self._lengths.tolist(), size, seed=seed, epoch=epoch)
        return [batch for batch in batches if len(batch) == size] or batches

    def in_order(self, size: int) -> Iterator[list[int]]:
        """Every row once, like lengths together."""
        order = np.argsort(self._lengths, kind="stable").tolist()
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Few shapes are different: they depend on the longest row, rounded up."""
        rows, lengths = self.rows, self._lengths
        longest = math.ceil(max(int(lengths[i]) for i in indices) / _PAD_TO) * _PAD_TO
        ids = np.zeros((len(indices), longest), np.int64)
        places, targets = [], []
        for row, index in enumerate(indices):
            start, length = int(rows.starts[index]), int(lengths[index])
            prompt = int(rows.prompts[index])  # its narrow type could not hold a place
            ids[row, :length] = rows.tokens[start : start + length]
            places.append(np.arange(prompt - 1, length) + row * longest)
            targets.append(rows.tokens[start + prompt : start + length + 1])
        count = sum(map(len, targets))
        size = len(indices) * min(self._most, longest)
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


def _filled(parts: Sequence[NDArray[Any]], size: int, filler: int) -> NDArray[np.int64]:
    filled = np.full(size, filler, np.int64)
    joined = np.concatenate(parts)
    filled[: len(joined)] = joined
    return filled
