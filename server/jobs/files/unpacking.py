"""Unpack what was compressed with gzip, with bounds. Knows no files and no folders.

zlib and not Python's `gzip`, which reads headers byte by byte and members one by one: a file of
nothing else would keep the interpreter for minutes.
"""

import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from server.errors import InvalidRequest

MOST_RATIO: Final = 250  # lines of text come to 3 to 30
_FREE_BYTES: Final = 2**20  # so many are unpacked whatever the ratio is
MOST_MEMBERS: Final = 10_000
_PIECE_BYTES: Final = 2**16
_CHUNK_BYTES: Final = 2**20
_WITH_HEADER: Final = zlib.MAX_WBITS | 16
_GZIP: Final = b"\x1f\x8b"
_OTHERS: Final = {
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf": "7z",
}


def unpacked(source: BinaryIO) -> tuple[bool, Iterator[bytes]]:
    """Whether the bytes are compressed with gzip, and what they stand for, in chunks.

    Raises:
        InvalidRequest: they are compressed in another way. The chunks raise it too, for gzip that
            is broken or unpacks to far more than it is.
    """
    first = source.read(_PIECE_BYTES)
    if first.startswith(_GZIP):
        return True, _members(first, source)
    for mark, name in _OTHERS.items():
        if first.startswith(mark):
            raise InvalidRequest(
                f"the file is compressed with {name}: send JSONL as it is, or compressed with gzip",
                param="file",
            )
    return False, _as_it_is(first, source)


def _as_it_is(first: bytes, source: BinaryIO) -> Iterator[bytes]:
    chunk = first
    while chunk:
        yield chunk
        chunk = source.read(_CHUNK_BYTES)


def _members(piece: bytes, source: BinaryIO) -> Iterator[bytes]:
    """The members of a gzip file, one behind the other, as `gzip` itself reads them."""
    members, taken, given = 1, 0, 0
    member = zlib.decompressobj(_WITH_HEADER)
    while piece:
        try:
            chunk = member.decompress(piece, _CHUNK_BYTES)
        except zlib.error as error:
            raise _broken(f"damaged near byte {taken}") from error
        rest = member.unused_data if member.eof else member.unconsumed_tail
        taken, given = taken + len(piece) - len(rest), given + len(chunk)
        if given > _FREE_BYTES + MOST_RATIO * taken:
            raise InvalidRequest(
                f"the file unpacks to more than {MOST_RATIO} times its size: send it uncompressed",
                param="file",
            )
        yield chunk
        piece = rest or source.read(_PIECE_BYTES)
        while member.eof and piece.startswith(b"\0"):  # zeros may fill a file up
            piece = piece.lstrip(b"\0") or source.read(_PIECE_BYTES)
        if member.eof and piece:
            members, member = members + 1, zlib.decompressobj(_WITH_HEADER)
            if members > MOST_MEMBERS:
                raise _broken(f"of more than {MOST_MEMBERS} parts")
    if not member.eof:
        raise _broken("cut off")


def _broken(how: str) -> InvalidRequest:
    return InvalidRequest(
        f"the file looks like gzip and is {how}: compress it again, or send it uncompressed",
        param="file",
    )
