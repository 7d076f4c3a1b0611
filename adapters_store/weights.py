"""Reads and writes adapter files: safetensors, float32, manifest and checksum in the header.

Knows no folders and no versions. The format is read and written here, not by the safetensors
library (with which the tests compare it), for three reasons: the same content gives the same
bytes, every fault is named by tensor or field, and a small file loads in well under a millisecond.

The content hash is the SHA-256 of the whole file with the 64 digits of the hash itself read as
zeros; it stands in the header, so that reading the header is enough to know it.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch
from torch import Tensor

from adapters_store.manifest import Manifest
from adapters_store.store_errors import AdapterCorrupt

Tensors = Mapping[str, Tensor]
ReadTensors = dict[str, Tensor]

CHECKSUM_FIELD = "content_sha256"
_NO_CHECKSUM = "0" * 64
_MAX_HEADER_BYTES = 4 * 2**20  # four times what an import may need
_FLOAT_BYTES = 4
_OPENING = '{"__metadata__":{'  # of every header that is written here
_KNOWN_TABLES = 64  # kinds of files: those of one method, rank and choice of linears


@dataclass(frozen=True)
class Header:
    """The beginning of a file, before its numbers; `size_bytes` is that of the whole file."""

    manifest: Manifest
    sha256: str
    size_bytes: int


@dataclass(frozen=True, eq=False)
class TensorTable:
    """The tensors of a file, in the order of its numbers.

    Files with the same tensors mostly share one object, so that what follows from it is worked out
    only once.
    """

    shapes: Mapping[str, tuple[int, ...]]
    counts: tuple[int, ...]  # entries of each


@dataclass(frozen=True, eq=False)
class Content:
    """A whole file, verified. `numbers` is float32 [entries] on the CPU, all tensors in a row."""

    header: Header
    table: TensorTable
    numbers: Tensor

    def tensors(self) -> ReadTensors:
        """Views of `numbers`, by name."""
        parts = self.numbers.split_with_sizes(self.table.counts)
        return {
            name: part if len(shape) == 1 else part.view(shape)
            for (name, shape), part in zip(self.table.shapes.items(), parts, strict=True)
        }


def write(path: Path, manifest: Manifest, tensors: Tensors) -> None:
    """Write a new file and wait until its bytes are on the disk.

    The entry in the folder is not synced: that is the caller's, who may still rename it.

    Args:
        tensors: `<module path>.<vector>` to float32 values of any shape, on any device.

    Raises:
        FileExistsError: `path` exists.
        ValueError: no tensors, or one is empty or not float32, or too many for one header.
    """
    if not tensors:
        raise ValueError(f"an adapter without tensors cannot be written to {path}")
    entries: dict[str, Any] = {
        "__metadata__": {**manifest.to_header(), CHECKSUM_FIELD: _NO_CHECKSUM}
    }
    parts: list[memoryview] = []  # no copies: making them would stop all other threads
    end = 0
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype != torch.float32 or tensor.numel() == 0:
            raise ValueError(
                f"tensor {name!r} is {tensor.dtype} of shape {list(tensor.shape)}; "
                "adapters are stored in float32, and none is empty"
            )
        numbers = tensor.detach().cpu().contiguous().numpy().astype("<f4", copy=False)
        parts.append(numbers.reshape(-1).view("u1").data)
        start, end = end, end + len(parts[-1])
        entries[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the numbers aligned for readers that map the file
    if len(text) > _MAX_HEADER_BYTES:
        raise ValueError(f"{len(tensors)} tensors need a header of over {_MAX_HEADER_BYTES} bytes")
    text = text.replace(_checksum(_NO_CHECKSUM), _checksum(_digest(text, *parts)), 1)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def read_header(path: Path) -> Header:
    """Read manifest, content hash and size, but no numbers; the hash is not verified.

    Raises:
        FileNotFoundError: no such file.
        AdapterCorrupt: naming the path, and the field or tensor at fault.
    """
    with path.open("rb") as file:
        text = _read_header_bytes(file, path)
        size = os.fstat(file.fileno()).st_size
    return _parsed(text, size - 8 - len(text), path)[0]


def read_content(path: Path) -> Content:
    """Read a whole file and verify its checksum.

    Raises:
        FileNotFoundError: no such file.
        AdapterCorrupt: naming the path, and the field or tensor at fault.
    """
    with path.open("rb") as file:
        text = _read_header_bytes(file, path)
        # Not a bytearray: that is filled with zeros first, by a thread that lets no other run.
        buffer = torch.empty(os.fstat(file.fileno()).st_size - file.tell(), dtype=torch.uint8)
        size = file.readinto(buffer.numpy().data)
    header, table = _parsed(text, size, path)
    data = buffer[:size]
    blank = text.replace(_checksum(header.sha256), _checksum(_NO_CHECKSUM), 1)
    if _digest(blank, data.numpy().data) != header.sha256:
        raise AdapterCorrupt(
            f"{path}: the content does not match {CHECKSUM_FIELD}={header.sha256}: "
            "the file was altered or damaged; publish the adapter again"
        )
    return Content(header, table, data.view(torch.float32))


def _checksum(digest: str) -> bytes:
    """The checksum as it stands in the header; within a string its quotes would be escaped."""
    return f'"{CHECKSUM_FIELD}":"{digest}"'.encode()


def _digest(text: bytes, *data: memoryview) -> str:
    digest = hashlib.sha256(len(text).to_bytes(8, "little"))
    digest.update(text)
    for part in data:
        digest.update(part)
    return digest.hexdigest()


def _read_header_bytes(file: BinaryIO, path: Path) -> bytes:
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= _MAX_HEADER_BYTES:
        raise AdapterCorrupt(f"{path}: not a safetensors file: no header length in its first bytes")
    text = file.read(length)
    if len(text) < length:
        raise AdapterCorrupt(f"{path}: truncated: {len(text)} of {length} header bytes")
    return text


def _parsed(text: bytes, data_bytes: int, path: Path) -> tuple[Header, TensorTable]:
    """Parse and check the header of a file with so many bytes of numbers."""
    try:
        metadata, tensors = _split(text)
        header = _header(metadata, 8 + len(text) + data_bytes)
        table = _table(tensors)
        _check_end(table, data_bytes)
    except AdapterCorrupt as error:
        raise AdapterCorrupt(f"{path}: {error}") from error
    return header, table


def _split(text: bytes) -> tuple[object, str]:
    """The metadata, and JSON of everything else, which files of one kind have in common."""
    try:
        whole = text.decode()
        if whole.startswith(_OPENING):
            metadata, end = json.JSONDecoder().raw_decode(whole, len(_OPENING) - 1)
            if whole[end : end + 1] == ",":
                return metadata, "{" + whole[end + 1 :].rstrip(" ")
        entries = json.loads(whole)
    except (ValueError, RecursionError) as error:
        raise AdapterCorrupt(f"the header is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise AdapterCorrupt("the header is not a JSON object")
    return entries.pop("__metadata__", None), json.dumps(entries)


def _header(metadata: object, size_bytes: int) -> Header:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AdapterCorrupt("the header has no __metadata__ of strings")
    sha256 = metadata.get(CHECKSUM_FIELD, "")
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise AdapterCorrupt(f"the header has no {CHECKSUM_FIELD!r} of 64 hex digits")
    return Header(Manifest.from_header(metadata), sha256, size_bytes)


@lru_cache(maxsize=_KNOWN_TABLES)
def _table(text: str) -> TensorTable:
    """Every tensor's shape, in the order of the data, which they fill without gap or overlap."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterCorrupt(f"the header is not JSON: {error}") from error
    places = sorted((*_place(name, entry), name) for name, entry in entries.items())
    end = 0
    for start, stop, _, name in places:
        if start != end:
            raise AdapterCorrupt(f"tensor {name!r} does not begin where the last one ends")
        end = stop
    shapes = {name: shape for _, _, shape, name in places}
    return TensorTable(shapes, tuple(math.prod(shape) for shape in shapes.values()))


def _check_end(table: TensorTable, data_bytes: int) -> None:
    needed = sum(table.counts) * _FLOAT_BYTES
    if needed == data_bytes and needed:
        return
    for name, end in zip(table.shapes, accumulate(table.counts), strict=True):
        if end * _FLOAT_BYTES > data_bytes:
            raise AdapterCorrupt(
                f"truncated: tensor {name!r} ends at byte {end * _FLOAT_BYTES} of the data, "
                f"which has {data_bytes}"
            )
    raise AdapterCorrupt(f"{data_bytes} bytes of data where tensors need {needed}")


def _place(name: str, entry: object) -> tuple[int, int, tuple[int, ...]]:
    """Where a tensor lies in the data (first byte, past the last), and its shape."""
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    if fields.get("dtype") != "F32":
        raise AdapterCorrupt(f"tensor {name!r} is {fields.get('dtype')!r} and not F32")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise AdapterCorrupt(f"tensor {name!r} has no valid shape and data_offsets")
    start, stop = offsets
    if stop == start or stop - start != math.prod(shape) * _FLOAT_BYTES or start % _FLOAT_BYTES:
        raise AdapterCorrupt(f"tensor {name!r} of shape {shape} does not fit {offsets}")
    return start, stop, tuple(shape)


def _sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
