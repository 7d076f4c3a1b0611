"""Two endless random matrices named by one seed. Knows nothing of adapters, layers or scale.

Spec `philox4x64-10/s8/v1`. Row `i` of stream `s` is the little-endian output of Philox4x64-10
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) under the key
`(seed, s << 32 | i)`, its blocks of 32 bytes counted from 1 as numpy counts them. Entry `j` is
`(2 * byte[j] - 255) / 256`: mean 0, variance (1 - 2**-16) / 3, and at most eight significant bits,
so every step from byte to entry is exact in bfloat16, float16 and float32 alike. Nothing depends on
the size asked for: any row, prefix or tile can be made alone.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.errors import BasisMismatch

SPEC: Final = "philox4x64-10/s8/v1"
STREAM_A: Final = 0
STREAM_B: Final = 1

DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

_MAX_ROWS = 1 << 32  # the row is the low half of a key word
_MAX_COLUMNS = 1 << 64
_BLOCK_BYTES = 32
_CHUNK_BYTES = 1 << 18  # bytes turned into entries at a time: small enough to stay in cache

_CANONICAL_ROWS = (*range(8), 4095, 65_535, _MAX_ROWS - 1)
_CANONICAL_COLUMNS = (range(256), range(14_335, 14_399))


def reference_bytes(seed: int, stream: int, row: int, count: int) -> NDArray[np.uint8]:
    """The first `count` bytes of one row, straight from numpy: what every fast path must equal.

    Returns: uint8 [count].
    """
    return _little_endian_bytes(_row_generator(seed, stream, row), -(-count // 8))[:count]


@dataclass(frozen=True)
class Basis:
    """The matrices A (stream 0) and B (stream 1) of one seed, made on demand and never stored.

    Raises:
        ValueError: the seed does not fit 64 unsigned bits.
        BasisMismatch: the spec is not the one that this build makes.
    """

    seed: int
    spec: str = SPEC

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed {self.seed} is out of range: choose one in [0, 2**64)")
        if self.spec != SPEC:
            raise BasisMismatch(
                f"basis spec {self.spec!r} is unknown, this build makes {SPEC!r}: "
                "serve the adapter with a build that knows its spec, or train it again"
            )

    def a(
        self,
        rank: int,
        in_features: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """`A[:rank, :in_features]`, a tensor [rank, in_features]."""
        return self.tile(STREAM_A, range(rank), range(in_features), dtype, device)

    def b(
        self,
        out_features: int,
        rank: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """`B[:out_features, :rank]`, a tensor [out_features, rank]."""
        return self.tile(STREAM_B, range(out_features), range(rank), dtype, device)

    def tile(
        self,
        stream: int,
        rows: range | slice,
        cols: range | slice,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Make `matrix[rows, cols]` of one stream without the rest of the matrix.

        Returns: [len(rows), len(cols)], in one of `DTYPES`.

        Raises:
            ValueError: a span that is open-ended, stepped or outside the matrix; another dtype.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype} is not offered for a basis: choose one of {DTYPES}")
        rows, cols = _span("rows", rows, _MAX_ROWS), _span("cols", cols, _MAX_COLUMNS)
        out = torch.empty(len(rows), len(cols), dtype=dtype, device=device)
        chunk_rows = max(1, _CHUNK_BYTES // max(1, len(cols)))
        raw = np.empty((min(chunk_rows, len(rows)), len(cols)), dtype=np.uint8)
        for start in range(0, len(rows), chunk_rows):
            entries = out[start : start + chunk_rows]
            chunk = raw[: len(entries)]
            _fill_bytes(chunk, self.seed, stream, rows.start + start, cols.start)
            entries.copy_(torch.from_numpy(chunk)).mul_(2 / 256).sub_(255 / 256)
        return out

    def tile_hash(self) -> str:
        """SHA-256 of the canonical tile, in hex: what an adapter stores to recognise its basis.

        Hashed: the line `<spec> <seed>\\n` in ASCII, then for stream A and then B, for each of the
        rows 0..7, 4095, 65535 and 2**32 - 1, the entries of the columns 0..255 and 14335..14398 as
        little-endian float32. Entries rather than bytes, made by `tile`, so that a broken
        conversion or a wrong seek to a far, unaligned column shows as well as a wrong generator.
        """
        digest = hashlib.sha256(f"{self.spec} {self.seed:d}\n".encode("ascii"))
        for stream in (STREAM_A, STREAM_B):
            for row in _CANONICAL_ROWS:
                for cols in _CANONICAL_COLUMNS:
                    entries = self.tile(stream, range(row, row + 1), cols, torch.float32)
                    digest.update(entries.numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def check(self, tile_hash: str) -> None:
        """Refuse a basis other than the one an adapter was trained on.

        Raises:
            BasisMismatch: `tile_hash` is not this basis's.
        """
        ours = self.tile_hash()
        if tile_hash != ours:
            raise BasisMismatch(
                f"basis {self.spec!r} of seed {self.seed} hashes to {ours}, the adapter was "
                f"trained on {tile_hash}: restore the seed and spec of its header, or train again"
            )


def _span(name: str, span: range | slice, limit: int) -> range:
    """`span` as a range with both ends known, checked against [0, limit)."""
    if isinstance(span, slice):
        if span.stop is None:
            raise ValueError(f"{name} {span} has no end: the matrix is endless, give a stop")
        step = 1 if span.step is None else span.step
        span = range(span.start or 0, span.stop, step)
    if span.step != 1 or span.start < 0 or span.stop < span.start or span.stop > limit:
        raise ValueError(f"{name} {span} must run upwards by ones within [0, {limit})")
    return span


def _row_generator(seed: int, stream: int, row: int) -> np.random.Philox:
    # A plain list would pass through float64 when only one of its integers needs 64 bits.
    key = np.array([seed, stream << 32 | row], dtype=np.uint64)
    return np.random.Philox(key=key, counter=0)


def _little_endian_bytes(generator: np.random.Philox, words: int) -> NDArray[np.uint8]:
    return generator.random_raw(words).astype("<u8", copy=False).view(np.uint8)


def _fill_bytes(
    out: NDArray[np.uint8], seed: int, stream: int, first_row: int, first_column: int
) -> None:
    """Fill `out` [rows, columns] with the bytes of consecutive rows from `first_column` on."""
    rows, columns = out.shape
    first_block, skipped = divmod(first_column, _BLOCK_BYTES)
    words = -(-(skipped + columns) // 8)
    generator = _row_generator(seed, stream, first_row)
    # Rekeying one generator costs a sixth of making one per row. The state dictionary is a copy
    # whose buffer is empty, so assigning it also discards what the last row left over.
    state = generator.state
    state["state"]["counter"][0] = first_block
    for offset in range(rows):
        state["state"]["key"][1] = stream << 32 | (first_row + offset)
        generator.state = state
        out[offset] = _little_endian_bytes(generator, words)[skipped : skipped + columns]
