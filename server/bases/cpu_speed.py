"""Decides by a measurement whether a base runs in float32 or in bfloat16 on this CPU.

A processor without bfloat16 products takes several times as long for them, and one with such
products half as long or less. Measured are products of the base's own shapes, on one thread and in
its own time, so that other programs on the machine hardly change the figures.
"""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

CLEARLY_FASTER: Final = 1.3
_DECODED, _TRAINED = 32, 256  # rows of a step of answers, and of a training pass
_ROUNDS: Final = 5
_MOST: Final = 1024  # of a side; a larger matrix is measured by its corner
_SHAPES: Final = 4  # the most frequent ones


@dataclass(frozen=True)
class CpuSpeed:
    """How many times as fast bfloat16 is as float32, with few rows and with many."""

    decoding: float
    training: float

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16 where both are clearly faster, and else float32, which is more exact."""
        faster = min(self.decoding, self.training) >= CLEARLY_FASTER
        return torch.bfloat16 if faster else torch.float32

    def __str__(self) -> str:
        return (
            f"bfloat16 products are {self.decoding:.1f} times as fast as float32 in a step of "
            f"{_DECODED} answers, and {self.training:.1f} times in training"
        )


@torch.inference_mode()
def cpu_speed(model: PreTrainedModel) -> CpuSpeed:
    """Measure with weights of the shapes that `model` has, in at most a fraction of a second."""
    counts = Counter(
        (min(weight.shape[0], _MOST), min(weight.shape[1], _MOST))
        for weight in model.parameters()
        if weight.ndim == 2 and weight is not model.get_input_embeddings().weight
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return CpuSpeed(*(_ratio(counts, rows) for rows in (_DECODED, _TRAINED)))
    finally:
        torch.set_num_threads(threads)


def _ratio(counts: Counter[tuple[int, int]], rows: int) -> float:
    wide, narrow = (
        sum(count * _seconds(shape, rows, dtype) for shape, count in counts.most_common(_SHAPES))
        for dtype in (torch.float32, torch.bfloat16)
    )
    return wide / max(narrow, 1e-9)


def _seconds(shape: tuple[int, int], rows: int, dtype: torch.dtype) -> float:
    """This thread's own time for a product, at its best; the first one sets things up."""
    x, weight = torch.ones(rows, shape[1], dtype=dtype), torch.ones(shape, dtype=dtype)
    functional.linear(x, weight)
    return min(_once(x, weight) for _ in range(_ROUNDS))


def _once(x: Tensor, weight: Tensor) -> float:
    started = time.thread_time()
    functional.linear(x, weight)
    return time.thread_time() - started
