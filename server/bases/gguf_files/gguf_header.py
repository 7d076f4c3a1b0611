"""The header of a GGUF file: what it says of the model, and where its tensors lie.

Knows no model and no weights. A file may come from a stranger, so every count and length is held
against a bound and against what is left of the file before anything is made of it.
"""

import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from server.errors import UnsupportedModel

_T = TypeVar("_T", str, int, float, bool)
Value = str | int | float | bool | list[str] | list[int] | list[float]

_MAGIC: Final = b"GGUF"
_MAX_HEADER: Final = 128 * 2**20
_MAX_FIELDS: Final = 65_536
_MAX_TENSORS: Final = 65_536
_MAX_ITEMS: Final = 4 * 2**20  # of all arrays; a vocabulary of 256 Ki with merges has 1.3 M
_MAX_DIMS: Final = 4
_MAX_KEY: Final = 65_535
_FORMATS: Final = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_WORDS: Final = {str: "text", int: "whole number", float: "finite number", bool: "yes or no"}
_STRUCTS: Final = {kind: struct.Struct(f"<{letter}") for kind, letter in _FORMATS.items()}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: `shape` has the rows first, `offset` counts from the file's start."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """What stands in front of the weights of one file."""

    path: Path
    fields: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    def get(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        """A field of this kind. Raises UnsupportedModel if it is another, or missing."""
        value: object = self.fields.get(key, default)
        if kind is float and type(value) is int:
            value = float(value)
        if value is None:
            raise UnsupportedModel(
                f"GGUF file {self.path.name!r} has no {key}: convert the model again, or give "
                "another file"
            )
        if type(value) is not kind or (isinstance(value, float) and not isfinite(value)):
            shown = repr(value)[:60]
            raise UnsupportedModel(
                f"GGUF file {self.path.name!r} has {key}={shown}, which is no {_WORDS[kind]}: "
                "convert the model again, or give another file"
            )
        return value


def read_header(path: Path) -> GgufHeader:
    """Read and check what stands in front of the weights.

    Raises:
        UnsupportedModel: the file cannot be read, is damaged, or is of a kind that is not read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not _MAGIC.startswith(file.read(len(_MAGIC))):
                raise UnsupportedModel(
                    f"{path.name!r} is no GGUF file, whatever its name says: it does not begin "
                    "with GGUF; give a GGUF file, or a folder that transformers saved"
                )
            if size < 24:
                raise _damaged(path, f"it has {size} bytes")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, data)
    except OSError as error:
        raise UnsupportedModel(
            f"GGUF file {str(path)!r} cannot be read: {error.strerror}; check the path and rights"
        ) from error


class _Cursor:
    """Reads one value after the other, and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.end = min(len(data), _MAX_HEADER)
        self.at = 0
        self.items = _MAX_ITEMS

    def take(self, count: int) -> int:
        """Step over `count` bytes; where they begin."""
        start = self.at
        if count > self.end - start:
            if self.end < len(self.data):
                raise _damaged(self.path, f"its header is longer than {_MAX_HEADER} bytes")
            raise _damaged(self.path, f"it ends at byte {len(self.data)}, within its header")
        self.at += count
        return start

    def number(self, kind: GGUFValueType) -> int | float | bool:
        form = _STRUCTS[kind]
        value: int | float | bool = form.unpack_from(self.data, self.take(form.size))[0]
        return value

    def count(self, most: int, what: str) -> int:
        value = int(self.number(GGUFValueType.UINT64))
        if value > most:
            raise _damaged(self.path, f"it states {value} {what}, and {most} are the most")
        return value

    def text(self, most: int = _MAX_HEADER) -> str:
        length = self.count(most, "bytes in a text")
        start = self.take(length)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise _damaged(self.path, f"the text at byte {start} is not UTF-8") from error

    def value_type(self) -> GGUFValueType:
        number = int(self.number(GGUFValueType.UINT32))
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise _damaged(self.path, f"it has a value of the unknown type {number}") from error

    def value(self) -> Value:
        kind = self.value_type()
        if kind == GGUFValueType.STRING:
            return self.text()
        return self._array() if kind == GGUFValueType.ARRAY else self.number(kind)

    def _array(self) -> Value:
        kind = self.value_type()
        if kind == GGUFValueType.ARRAY:
            raise _damaged(self.path, "it has an array of arrays")
        count = self.count(self.items, "items in its arrays")
        self.items -= count
        if kind == GGUFValueType.STRING:
            return [self.text() for _ in range(count)]
        form = _STRUCTS[kind]
        start = self.take(count * form.size)
        kept: list[int] = np.frombuffer(
            self.data[start : self.at], dtype=np.dtype(f"<{_FORMATS[kind]}")
        ).tolist()
        return kept


def _parse(path: Path, data: mmap.mmap) -> GgufHeader:
    cursor = _Cursor(path, data)
    _check_version(cursor)
    tensors = cursor.count(_MAX_TENSORS, "tensors")
    fields: dict[str, Value] = {}
    for _ in range(cursor.count(_MAX_FIELDS, "fields")):
        key = cursor.text(_MAX_KEY)
        if key in fields:
            raise _damaged(path, f"it has {key[:60]!r} twice")
        fields[key] = cursor.value()
    found = [_tensor(cursor) for _ in range(tensors)]
    if len({tensor.name for tensor in found}) < len(found):
        raise _damaged(path, "it has two tensors of one name")
    header = GgufHeader(path, fields, {})
    _check_whole(header)
    alignment = header.get("general.alignment", int, 32)
    if alignment <= 0 or alignment & (alignment - 1):
        raise _damaged(path, f"general.alignment is {alignment}, which is no power of two")
    start = -(-cursor.at // alignment) * alignment
    placed = [_placed(path, tensor, start, len(data)) for tensor in found]
    if sum(tensor.size for tensor in placed) > len(data) - start:
        raise _damaged(path, "its tensors overlap")
    return GgufHeader(path, fields, {tensor.name: tensor for tensor in placed})


def _check_version(cursor: _Cursor) -> None:
    cursor.take(len(_MAGIC))
    version = int(cursor.number(GGUFValueType.UINT32))
    if version and version & 0xFFFF == 0:
        raise UnsupportedModel(
            f"GGUF file {cursor.path.name!r} is big-endian: give the little-endian file, which "
            "gguf-convert-endian writes"
        )
    if version not in (2, 3):
        raise UnsupportedModel(
            f"GGUF file {cursor.path.name!r} is of version {version}, and 2 and 3 are read: "
            "convert the model again"
        )


def _check_whole(header: GgufHeader) -> None:
    pieces = header.get("split.count", int, 1)
    if pieces > 1:
        raise UnsupportedModel(
            f"GGUF file {header.path.name!r} is one of {pieces} pieces: join them with "
            "llama-gguf-split --merge, and give the whole"
        )


def _tensor(cursor: _Cursor) -> GgufTensor:
    """A tensor as the header states it: its offset counts from where the weights begin."""
    name = cursor.text(_MAX_KEY)
    dims = int(cursor.number(GGUFValueType.UINT32))
    if not 1 <= dims <= _MAX_DIMS:
        raise _damaged(cursor.path, f"tensor {name[:60]!r} has {dims} dimensions")
    shape = tuple(int(cursor.number(GGUFValueType.UINT64)) for _ in range(dims))[::-1]
    number, offset = (
        int(cursor.number(kind)) for kind in (GGUFValueType.UINT32, GGUFValueType.UINT64)
    )
    try:
        kind = GGMLQuantizationType(number)
    except ValueError as error:
        raise UnsupportedModel(
            f"tensor {name[:60]!r} of GGUF file {cursor.path.name!r} is of the unknown type "
            f"{number}: give a file in F16, BF16, Q8_0 or a K-quantisation"
        ) from error
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if not all(shape) or shape[-1] % block:
        raise _damaged(cursor.path, f"tensor {name[:60]!r} has the shape {shape} in {kind.name}")
    return GgufTensor(name, kind, shape, offset, prod(shape) // block * block_bytes)


def _placed(path: Path, tensor: GgufTensor, start: int, length: int) -> GgufTensor:
    end = start + tensor.offset + tensor.size
    if end > length:
        raise _damaged(
            path, f"tensor {tensor.name[:60]!r} ends at byte {end}, and the file at {length}"
        )
    return GgufTensor(tensor.name, tensor.kind, tensor.shape, start + tensor.offset, tensor.size)


def _damaged(path: Path, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"GGUF file {path.name!r} is damaged or cut short: {why}; download or convert it again"
    )
