"""Which examples a step reads, and in which forward passes. Pure: no tensors, no state."""

import math
from collections.abc import Sequence

import numpy as np

_HELD_OUT_STREAM = 2**64 - 1  # no epoch has this number
_LENGTH_NOISE = 0.1  # neighbours in length change from epoch to epoch; padding stays small


def held_out(count: int, share: float, *, seed: int) -> frozenset[int]:
    """Which of `count` lines are held out from training: about `share`, at least one, never all."""
    if share == 0 or count < 2:
        return frozenset()
    words = _words(seed, _HELD_OUT_STREAM).random_raw(count)
    return frozenset(np.argsort(words, kind="stable")[: max(1, round(count * share))].tolist())


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Optimizer steps of one pass over the examples; the last may be short."""
    return math.ceil(num_examples / batch_size)


def epoch_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int
) -> list[list[int]]:
    """One epoch's batches of example indices: every example once, like lengths together.

    A pure function of its arguments, the same on every machine, so that a run that was cut short
    continues with exactly the batches that it would have seen.
    """
    words = _words(seed, epoch)
    noise = 1 + _LENGTH_NOISE * (words.random_raw(len(lengths)) / 2.0**64)
    order = np.argsort(np.asarray(lengths) * noise, kind="stable").tolist()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[i] for i in np.argsort(words.random_raw(len(batches)), kind="stable")]


def _words(seed: int, stream: int) -> np.random.Philox:
    """Raw random words. Numpy's distributions may change from one release to the next."""
    return np.random.Philox(key=np.array([seed, stream], np.uint64))


def micro_batches(
    indices: Sequence[int], lengths: Sequence[int], max_tokens: int
) -> list[list[int]]:
    """Split a batch so that no part, padded to its longest member, is over `max_tokens`.

    A single example longer than that is a part of its own.
    """
    parts: list[list[int]] = []
    for index in sorted(indices, key=lambda i: (lengths[i], i)):
        # Sorted by length: the one that is added is the longest, and pads all the others.
        if parts and lengths[index] * (len(parts[-1]) + 1) <= max_tokens:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts
