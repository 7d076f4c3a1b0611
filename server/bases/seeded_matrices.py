"""Makes two endless random matrices from one seed. Knows no adapters, no layers and no scale.

Row `i` of stream `s` is the little-endian output of Philox4x64-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011) under the key `(seed, s << 32 | i)`, its blocks of 32 bytes
counted from 1 as numpy counts them. The spec says what byte `j` of a row becomes as entry `j`:

- `philox4x64-10/s8/v1`, dense: `(2 * byte - 255) / 256`; mean 0, variance (1 - 2**-16) / 3.
- `philox4x64-10/t<k>/v1`, ternary, k from 1 to 127: -1 if `byte < k`, +1 if `byte >= 256 - k`, else
  0; mean 0, variance 2k / 256.

Entries have at most eight significant bits, so every step from byte to entry is exact in bfloat16,
float16 and float32 alike. Nothing depends on the size asked for: any row, prefix or tile can be
made alone.
"""

import hashlib
import math
import re
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

_TERNARY = re.compile(r"philox4x64-10/t([1-9][0-9]{0,2})/v1")
_MAX_THRESHOLD = 127  # of 256 bytes: a zero must remain possible
_MAX_LAYERS = (1 << 31) - 1  # the stream is the high half of a key word

_CANONICAL_ROWS = (*range(8), 4095, 65_535, _MAX_ROWS - 1)
_CANONICAL_COLUMNS = (range(256), range(14_335, 14_399))


def reference_bytes(seed: int, stream: int, row: int, count: int) -> NDArray[np.uint8]:
    """The first `count` bytes of one row, straight from numpy: what every fast path must equal.

    Returns: uint8 [count].
    """
    return _little_endian_bytes(_row_generator(seed, stream, row), -(-count // 8))[:count]


def ternary_spec(sparsity: float) -> str:
    """The ternary spec nearest to `sparsity`, the `s` of very sparse random projections.

    An entry is -1 and +1 with probability 1 / (2s) each (Li, Hastie and Church, "Very sparse random
    projections", KDD 2006). Thresholds are whole bytes: 3 becomes t43, which is s = 2.98, and the
    sparsest, t1, is s = 128.

    Raises:
        ValueError: a sparsity that leaves no zeros, or is not a finite number.
    """
    threshold = max(1, round(128 / sparsity)) if 1 < sparsity < math.inf else 0
    if not 1 <= threshold <= _MAX_THRESHOLD:
        raise ValueError(f"sparsity {sparsity} is out of range: give a finite number above 1.01")
    return f"philox4x64-10/t{threshold}/v1"


@dataclass(frozen=True)
class Basis:
    """The matrices A and B of one seed, made on demand and never stored.

    `layer` None reads the streams 0 (A) and 1 (B), which all layers share; layer `l` reads its own,
    2 + 2l and 3 + 2l.

    Raises:
        ValueError: the seed does not fit 64 unsigned bits, or no stream is left for the layer.
        BasisMismatch: the spec is not one that this build makes.
    """

    seed: int
    spec: str = SPEC
    layer: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed {self.seed} is out of range: choose one in [0, 2**64)")
        if self.layer is not None and not 0 <= self.layer < _MAX_LAYERS:
            raise ValueError(f"layer {self.layer} is out of range: choose one in [0, 2**31 - 1)")
        _threshold(self.spec)

    @property
    def variance(self) -> float:
        """Of one entry, over all seeds."""
        threshold = _threshold(self.spec)
        return (1 - 2**-16) / 3 if threshold is None else 2 * threshold / 256

    def a(
        self, rank: int, in_features: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Tensor:
        """`A[:rank, :in_features]`, a tensor [rank, in_features]."""
        return self.tile(self._stream(STREAM_A), range(rank), range(in_features), dtype, device)

    def b(
        self, out_features: int, rank: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Tensor:
        """`B[:out_features, :rank]`, a tensor [out_features, rank]."""
        return self.tile(self._stream(STREAM_B), range(out_features), range(rank), dtype, device)

    def tile(
        self,
        stream: int,
        rows: range | slice,
        cols: range | slice,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Make `matrix[rows, cols]` of one stream, whatever the layer, without the rest of it.

        Returns: [len(rows), len(cols)], in one of `DTYPES`.

        Raises:
            ValueError: a span that is open-ended, stepped or outside the matrix; another dtype.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype} is not offered for a basis: choose one of {DTYPES}")
        threshold = _threshold(self.spec)
        rows, cols = _span("rows", rows, _MAX_ROWS), _span("cols", cols, _MAX_COLUMNS)
        out = torch.empty(len(rows), len(cols), dtype=dtype, device=device)
        chunk_rows = max(1, _CHUNK_BYTES // max(1, len(cols)))
        raw = np.empty((min(chunk_rows, len(rows)), len(cols)), dtype=np.uint8)
        for start in range(0, len(rows), chunk_rows):
            entries = out[start : start + chunk_rows]
            chunk = raw[: len(entries)]
            _fill_bytes(chunk, self.seed, stream, rows.start + start, cols.start)
            if threshold is None:
                entries.copy_(torch.from_numpy(chunk)).mul_(2 / 256).sub_(255 / 256)
            else:
                entries.copy_(torch.from_numpy(_signs(chunk, threshold)))
        return out

    def tile_hash(self) -> str:
        """SHA-256 of the canonical tile, in hex: what an adapter stores to recognise its basis.

        Of the streams that all layers share, even where `layer` is given: a layer's own differ from
        them in the number of the stream alone. Hashed: the line `<spec> <seed>\\n` in ASCII, then
        for stream A and then B, for each of the rows 0..7, 4095, 65535 and 2**32 - 1, the entries
        of the columns 0..255 and 14335..14398 as little-endian float32. Entries rather than bytes,
        made by `tile`, so that a broken conversion or a wrong seek to a far, unaligned column shows
        as well as a wrong generator.
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
        own_hash = self.tile_hash()
        if tile_hash != own_hash:
            raise BasisMismatch(
                f"basis {self.spec!r} of seed {self.seed} hashes to {own_hash}, the adapter was "
                f"trained on {tile_hash}: restore the seed and spec of its header, or train again"
            )

    def _stream(self, stream: int) -> int:
        return stream if self.layer is None else 2 + 2 * self.layer + stream


def _threshold(spec: str) -> int | None:
    """How many of the 256 bytes become -1, and how many +1; None for the dense spec."""
    if spec == SPEC:
        return None
    ternary = _TERNARY.fullmatch(spec)
    threshold = int(ternary[1]) if ternary else 0
    if not 1 <= threshold <= _MAX_THRESHOLD:
        raise BasisMismatch(
            f"basis spec {spec!r} is unknown, this build makes {SPEC!r} and "
            f"'philox4x64-10/t<k>/v1' with k from 1 to {_MAX_THRESHOLD}: "
            "serve the adapter with a build that knows its spec, or train it again"
        )
    return threshold


def _signs(raw: NDArray[np.uint8], threshold: int) -> NDArray[np.int8]:
    """-1, 0 and +1 in place of bytes."""
    return (raw >= 256 - threshold).view(np.int8) - (raw < threshold).view(np.int8)


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
