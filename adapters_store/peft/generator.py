"""Makes the random matrices of PEFT's VeRA and RandLoRA again from their key, without torch.

PEFT 0.21 (`peft/tuners/{vera,randlora}/model.py`) draws them from torch's CPU generator: MT19937,
of which a float32 in [0, 1) takes the low 24 bits of each word. RandLoRA's dense matrices are drawn
into half precision, where a number takes 8 (bfloat16) or 11 (float16) bits up to torch 2.11, and
24 bits, rounded afterwards, from 2.12 on: two unrelated matrices for one key. The division by their
standard deviation is in half precision, too.

The tests compare this with torch bit for bit; they have the results of torch 2.11 as hashes. CPUs
whose torch does not fuse multiply and add (without AVX2) may differ in the last bit.

Knows no checkpoint, no base model and no torch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from adapters_store.store_errors import InvalidCheckpoint

Floats = NDArray[np.float32]
Half = Literal["bfloat16", "float16"]
Era = Literal["2.11", "2.12"]

HALVES: Final[tuple[Half, ...]] = ("bfloat16", "float16")
ERAS: Final[tuple[Era, ...]] = ("2.11", "2.12")
"""Up to torch 2.11, and from 2.12 on."""

_CHUNK = 1 << 18  # numbers drawn at a time: bounds memory, and lets other threads run in between
_BITS: Final = {"bfloat16": 8, "float16": 11}
_STD_ERROR = {"bfloat16": 1e-6, "float16": 1e-6, "float32": 1e-11}  # of torch's sums, generously


class Twister:
    """torch's CPU generator after `manual_seed(key)`."""

    def __init__(self, key: int) -> None:
        # The legacy seeding is torch's; the state of a key stays the same for ever (NEP 19).
        self._words = np.random.RandomState(key & 0xFFFFFFFF)._bit_generator

    def fractions(self, count: int, bits: int) -> NDArray[np.float64]:
        """The low `bits` of the next `count` words, as numbers in [0, 1)."""
        words = self._words.random_raw(count) & np.uint64((1 << bits) - 1)
        return words.astype(np.float64) * 2.0**-bits


@dataclass(frozen=True)
class Projections:
    """A and B as PEFT shapes them, float32."""

    a: Floats
    b: Floats


def vera_projections(key: int, rank: int, max_in: int, max_out: int) -> Projections:
    """VeRA's A [rank, max_in] and B [max_out, rank]: one stream, A first, Kaiming-uniform.

    `max_in` and `max_out` are the largest features among the targeted linears.
    """
    stream = Twister(key)

    def draw(rows: int, columns: int) -> Floats:
        bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(columns))
        low, high = np.float32(-bound), np.float32(bound)
        return _filled(
            (rows, columns), lambda count: _uniform_in(stream.fractions(count, 24), low, high)
        )

    return Projections(draw(rank, max_in), draw(max_out, rank))


def randlora_projections(
    key: int, rank: int, max_in: int, max_out: int, *, era: Era, half: Half
) -> Projections:
    """RandLoRA's dense A [rank, 1, narrow] and B [wide, n, rank], values of the half type.

    `narrow` and `wide` are the smaller and the larger of the two maxima, n = ceil(narrow / rank).

    Raises:
        InvalidCheckpoint: a standard deviation lies so near between two numbers of the half type
            that torch's own rounding cannot be known.
    """
    stream = Twister(key)
    narrow, wide = sorted((max_in, max_out))
    draw = _half_drawer(stream, era, half)
    a = draw((rank, 1, narrow), narrow)
    b = np.empty((wide, -(-narrow // rank), rank), dtype=np.float32)
    for block in range(b.shape[1]):
        b[:, block] = draw((wide, 1, rank), rank)[:, 0]
    return Projections(_normalised(a, half), _normalised(b, half))


def sparse_randlora_projections(
    key: int, rank: int, max_in: int, max_out: int, sparsity: float
) -> Projections:
    """RandLoRA's ternary A and B, shaped as the dense ones; the same under every torch.

    Raises:
        InvalidCheckpoint: as `randlora_projections`.
    """
    stream = Twister(key)
    narrow, wide = sorted((max_in, max_out))
    part = 1 / (2 * sparsity)

    def draw(*shape: int) -> Floats:
        return _filled(
            shape, lambda count: _ternary(stream.fractions(count, 24).astype(np.float32), part)
        )

    a, b = draw(rank, 1, narrow), draw(wide, -(-narrow // rank), rank)
    return Projections(_normalised(a, "float32"), _normalised(b, "float32"))


def rounded(values: Floats, dtype: str) -> Floats:
    """float32 to the nearest bfloat16 or float16 (ties to even) and back; "float32": as they are.

    What PEFT does to its matrices where the base model is of that type.
    """
    if dtype == "float32":
        return values
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    nearest = (bits + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)
    return nearest.view(np.float32)


def _half_drawer(stream: Twister, era: Era, half: Half) -> Callable[[tuple[int, ...], int], Floats]:
    """Draws a shape uniformly in (-1, 1) / sqrt(fan_in), as torch does into a half type."""

    def draw(shape: tuple[int, ...], fan_in: int) -> Floats:
        # kaiming_uniform_(a=sqrt(5)), in the order in which torch rounds.
        exact = math.sqrt(3.0) * (math.sqrt(2.0 / (1 + math.sqrt(5.0) ** 2)) / math.sqrt(fan_in))
        bound = np.float32(exact)
        edge = rounded(np.array([bound]), half)[0]
        if era == "2.11":
            return _filled(
                shape,
                lambda count: rounded(
                    _uniform_in(stream.fractions(count, _BITS[half]), -edge, edge), half
                ),
            )

        def from_24_bits(count: int) -> Floats:
            values = rounded(_uniform_in(stream.fractions(count, 24), -bound, bound), half)
            values[values == edge] = -edge  # the interval is open above
            return values

        return _filled(shape, from_24_bits)

    return draw


def _filled(shape: tuple[int, ...], draw: Callable[[int], Floats]) -> Floats:
    values = np.empty(math.prod(shape), dtype=np.float32)
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        part[:] = draw(len(part))
    return values.reshape(shape)


def _uniform_in(fractions: NDArray[np.float64], low: np.float32, high: np.float32) -> Floats:
    """`low + fractions * (high - low)`, rounded once: a fused multiply and add."""
    return (fractions * np.float64(high - low) + np.float64(low)).astype(np.float32)


def _ternary(values: Floats, part: float) -> Floats:
    signs = (values > np.float32(1 - part)).astype(np.float32)
    signs[values < np.float32(part)] = -1
    return signs


def _normalised(values: Floats, dtype: str) -> Floats:
    """`values / values.std()` with every step rounded to `dtype`."""
    std = _std(values)
    lower, upper = (
        rounded(np.array([std * (1 + error)], dtype=np.float32), dtype)[0]
        for error in (-_STD_ERROR[dtype], _STD_ERROR[dtype])
    )
    if lower != upper:
        raise InvalidCheckpoint(
            f"the standard deviation {std!r} of the random matrices is too near between two "
            f"numbers of {dtype} to say which of them torch took: save the adapter again with "
            "save_projection=True"
        )
    flat = values.reshape(-1)
    for start in range(0, len(flat), _CHUNK):
        flat[start : start + _CHUNK] = rounded(flat[start : start + _CHUNK] / lower, dtype)
    return values


def _std(values: Floats) -> float:
    """Unbiased, summed in float64 by chunks."""
    flat = values.reshape(-1)
    mean = float(flat.mean(dtype=np.float64))
    squares = 0.0
    for start in range(0, len(flat), _CHUNK):
        squares += float(np.square(flat[start : start + _CHUNK].astype(np.float64) - mean).sum())
    return math.sqrt(squares / (len(flat) - 1))
