"""Philox4x64-10 and the canonical hash in plain Python integers, to hold the numpy path to.

Written from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011),
section 3.3 and table 2, and from the basis spec; shares no code and no library with
`server.bases.seeded_matrices`. Slow on purpose: one line per line of the algorithm.
"""

import hashlib
import struct

Block = tuple[int, int, int, int]

_MASK = 2**64 - 1
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # golden ratio, sqrt(3) - 1

# Counter, key and output, from the authors' own library: Random123, tests/kat_vectors.
KNOWN_ANSWERS: tuple[tuple[Block, tuple[int, int], Block], ...] = (
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (_MASK, _MASK, _MASK, _MASK),
        (_MASK, _MASK),
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
)


def philox4x64_10(counter: Block, key: tuple[int, int]) -> Block:
    """Ten rounds of Philox over four 64-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(_MULTIPLIERS[0] * c0, 2**64)
        high1, low1 = divmod(_MULTIPLIERS[1] * c2, 2**64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def row_bytes(seed: int, stream: int, row: int, first: int, count: int) -> bytes:
    """Bytes `first` to `first + count` of one row; block `i` of a row has the counter `i + 1`."""
    blocks = range(first // 32, (first + count + 31) // 32)
    key = (seed, stream * 2**32 + row)
    data = b"".join(struct.pack("<4Q", *philox4x64_10((i + 1, 0, 0, 0), key)) for i in blocks)
    skipped = first % 32
    return data[skipped : skipped + count]


def row_entries(
    seed: int, stream: int, row: int, first: int, count: int, threshold: int | None = None
) -> list[float]:
    """The entries of those bytes, dense or ternary; a Python float holds each exactly."""
    data = row_bytes(seed, stream, row, first, count)
    if threshold is None:
        return [(2 * byte - 255) / 256 for byte in data]
    return [-1.0 if byte < threshold else 1.0 if byte > 255 - threshold else 0.0 for byte in data]


def canonical_hash(seed: int, spec: str, threshold: int | None = None) -> str:
    """The hash that `Basis.tile_hash` documents; `threshold` is the k of a ternary spec."""
    digest = hashlib.sha256(f"{spec} {seed}\n".encode())
    for stream in (0, 1):
        for row in (0, 1, 2, 3, 4, 5, 6, 7, 4095, 65535, 2**32 - 1):
            for first, count in ((0, 256), (14335, 64)):
                entries = row_entries(seed, stream, row, first, count, threshold)
                digest.update(struct.pack(f"<{count}f", *entries))
    return digest.hexdigest()
