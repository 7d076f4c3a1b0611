"""Drops copies of matrices from a checkpoint: PEFT 0.21 saves RandLoRA's again for every layer.

A file of safetensors is eight bytes that give the length of a JSON header, the header, and the
numbers. Knows no more of it than that: the server says what is wrong with a file.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

_LAYERS = "base_model.model."
_CHUNK_BYTES = 2**20
_MAX_HEADER_BYTES = 2**26


def without_copies(path: Path) -> BinaryIO:
    """The file, open for reading, without the tensors of layers that equal, byte for byte, the
    shared tensor of the same last name.
    """
    file = path.open("rb")
    try:
        slim = _slim(file)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        slim = None  # not a safetensors file: the server refuses it
    if slim is None:
        file.seek(0)
        return file
    file.close()
    return slim


def _slim(file: BinaryIO) -> BinaryIO | None:
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        return None
    entries: dict[str, dict[str, Any]] = json.loads(file.read(length))
    metadata = entries.pop("__metadata__", None)
    data = 8 + length
    shared = {
        name.rpartition(".")[2]: entry
        for name, entry in entries.items()
        if not name.startswith(_LAYERS)
    }
    rest = {
        name: entry
        for name, entry in entries.items()
        if not (name.startswith(_LAYERS) and _is_copy(file, data, entry, shared, name))
    }
    if len(rest) == len(entries):
        return None
    return _rewritten(file, data, rest, metadata)


def _is_copy(
    file: BinaryIO,
    data: int,
    entry: Mapping[str, Any],
    shared: Mapping[str, Mapping[str, Any]],
    name: str,
) -> bool:
    original = shared.get(name.rpartition(".")[2])
    if original is None or any(original[key] != entry[key] for key in ("dtype", "shape")):
        return False
    (start, end), (first, _) = entry["data_offsets"], original["data_offsets"]
    for offset in range(0, end - start, _CHUNK_BYTES):
        count = min(_CHUNK_BYTES, end - start - offset)
        here, there = (_read(file, data + at + offset, count) for at in (start, first))
        if here != there:
            return False
    return True


def _rewritten(
    file: BinaryIO, data: int, tensors: Mapping[str, dict[str, Any]], metadata: object
) -> BinaryIO:
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, entry in tensors.items():
        start, stop = entry["data_offsets"]
        header[name] = entry | {"data_offsets": [end, end + stop - start]}
        end += stop - start
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    slim = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    slim.write(len(text).to_bytes(8, "little") + text)
    for entry in tensors.values():
        start, stop = entry["data_offsets"]
        for offset in range(start, stop, _CHUNK_BYTES):
            slim.write(_read(file, data + offset, min(_CHUNK_BYTES, stop - offset)))
    slim.seek(0)
    return slim


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at, os.SEEK_SET)
    return file.read(count)
