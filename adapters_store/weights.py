"""Adapter files: safetensors, float32, with the manifest and a checksum in the header.

Knows no folders and no versions. The format is read and written here rather than through the
safetensors library (which the tests hold it to) for three reasons: the same content gives the same
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
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch
from torch import Tensor

from adapters_store.errors import AdapterCorrupt
from adapters_store.manifest import Manifest

Tensors = Mapping[str, Tensor]
ReadTensors = dict[str, Tensor]

CHECKSUM_FIELD = "content_sha256"
_NO_CHECKSUM = "0" * 64
_MAX_HEADER_BYTES = 64 * 2**20
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Header:
    """What a file says before its numbers; `size_bytes` is the whole file's."""

    manifest: Manifest
    sha256: str
    size_bytes: int


def write(path: Path, manifest: Manifest, tensors: Tensors) -> None:
    """Write a new file and wait until its bytes are on the disk.

    The entry in the folder is not synced: that is the caller's, who may still rename it.

    Args:
        tensors: `<module path>.<vector>` to float32 values of any shape, on any device.

    Raises:
        FileExistsError: `path` exists.
        ValueError: no tensors, or one is empty or not float32.
    """
    if not tensors:
        raise ValueError(f"an adapter without tensors cannot be written to {path}")
    entries: dict[str, Any] = {
        "__metadata__": {**manifest.to_header(), CHECKSUM_FIELD: _NO_CHECKSUM}
    }
    blobs: list[bytes] = []
    end = 0
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype != torch.float32 or tensor.numel() == 0:
            raise ValueError(
                f"tensor {name!r} is {tensor.dtype} of shape {list(tensor.shape)}; "
                "adapters are stored in float32, and none is empty"
            )
        blobs.append(tensor.detach().cpu().contiguous().numpy().astype("<f4").tobytes())
        start, end = end, end + len(blobs[-1])
        entries[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the numbers aligned for readers that map the file
    data = b"".join(blobs)
    text = text.replace(_checksum(_NO_CHECKSUM), _checksum(_digest(text, data)), 1)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)
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
    entries = _parse(text, path)
    header = _header(entries, size, path)
    _layout(entries, size - 8 - len(text), path)
    return header


def read_manifest(path: Path) -> Manifest:
    """`read_header`, the manifest alone."""
    return read_header(path).manifest


def read_all(path: Path) -> tuple[Header, ReadTensors]:
    """Read a whole file and verify its checksum. The tensors, float32 on the CPU, share one buffer.

    Raises:
        FileNotFoundError: no such file.
        AdapterCorrupt: naming the path, and the field or tensor at fault.
    """
    with path.open("rb") as file:
        text = _read_header_bytes(file, path)
        data = bytearray(os.fstat(file.fileno()).st_size - file.tell())
        del data[file.readinto(data) :]
    entries = _parse(text, path)
    header = _header(entries, 8 + len(text) + len(data), path)
    layout = _layout(entries, len(data), path)
    blank = text.replace(_checksum(header.sha256), _checksum(_NO_CHECKSUM), 1)
    if _digest(blank, data) != header.sha256:
        raise AdapterCorrupt(
            f"{path}: the content does not match {CHECKSUM_FIELD}={header.sha256}: "
            "the file was altered or damaged; publish the adapter again"
        )
    counts = [math.prod(shape) for shape in layout.values()]
    parts = torch.frombuffer(data, dtype=torch.float32).split_with_sizes(counts)
    return header, {
        name: part if len(shape) == 1 else part.view(shape)
        for (name, shape), part in zip(layout.items(), parts, strict=True)
    }


def read(path: Path) -> tuple[Manifest, ReadTensors]:
    """`read_all`, without the hash."""
    header, tensors = read_all(path)
    return header.manifest, tensors


def _checksum(digest: str) -> bytes:
    """The checksum as it stands in the header; within a string its quotes would be escaped."""
    return f'"{CHECKSUM_FIELD}":"{digest}"'.encode()


def _digest(text: bytes, data: bytes | bytearray) -> str:
    digest = hashlib.sha256(len(text).to_bytes(8, "little"))
    digest.update(text)
    digest.update(data)
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


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterCorrupt(f"{path}: the header is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise AdapterCorrupt(f"{path}: the header is not a JSON object")
    return entries


def _header(entries: Mapping[str, Any], size_bytes: int, path: Path) -> Header:
    metadata = entries.get("__metadata__")
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AdapterCorrupt(f"{path}: the header has no __metadata__ of strings")
    sha256 = metadata.get(CHECKSUM_FIELD, "")
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise AdapterCorrupt(f"{path}: the header has no {CHECKSUM_FIELD!r} of 64 hex digits")
    try:
        return Header(Manifest.from_header(metadata), sha256, size_bytes)
    except AdapterCorrupt as error:
        raise AdapterCorrupt(f"{path}: {error}") from error


def _layout(entries: Mapping[str, Any], data_bytes: int, path: Path) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape, in the order of the data.

    The tensors must fill the data without gap or overlap, as the format demands.
    """
    places = sorted(
        (*_place(name, entry, path), name)
        for name, entry in entries.items()
        if name != "__metadata__"
    )
    end = 0
    for start, stop, _, name in places:
        if start != end:
            raise AdapterCorrupt(f"{path}: tensor {name!r} does not begin where the last one ends")
        end = stop
        if end > data_bytes:
            raise AdapterCorrupt(
                f"{path}: truncated: tensor {name!r} ends at byte {end} of the data, "
                f"which has {data_bytes}"
            )
    if not places or end != data_bytes:
        raise AdapterCorrupt(f"{path}: {data_bytes} bytes of data where tensors need {end}")
    return {name: shape for _, _, shape, name in places}


def _place(name: str, entry: object, path: Path) -> tuple[int, int, tuple[int, ...]]:
    """Where a tensor lies in the data (first byte, past the last), and its shape."""
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    if fields.get("dtype") != "F32":
        raise AdapterCorrupt(f"{path}: tensor {name!r} is {fields.get('dtype')!r} and not F32")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise AdapterCorrupt(f"{path}: tensor {name!r} has no valid shape and data_offsets")
    start, stop = offsets
    if stop == start or stop - start != math.prod(shape) * _FLOAT_BYTES or start % _FLOAT_BYTES:
        raise AdapterCorrupt(f"{path}: tensor {name!r} of shape {shape} does not fit {offsets}")
    return start, stop, tuple(shape)


def _sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
