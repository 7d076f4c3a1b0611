"""Keeps random matrices that came with imported adapters, each once, by the hash of its numbers.

    <root>/<sha256>.safetensors      "a" [rank, columns] and "b" [rows, columns], float32

Knows no adapters, and not what the matrices mean. No seed of ours can make them again, so they are
stored. Adapters that were trained over the same matrices share them, since the hash is the same.
Files appear whole, by one rename, and are never changed.
"""

import hashlib
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters_store import disk
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound

_NAMES = {"a", "b"}
_SUFFIX = ".safetensors"


def basis_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The name of a pair of matrices: SHA-256, in hex, of their names, shapes and numbers.

    Hashed for "a" and then for "b": the line `<name> [<rows>, <columns>]` in ASCII, then the
    entries by rows as little-endian float32.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode("ascii"))
        digest.update(tensor.detach().cpu().contiguous().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


class ImportedBases:
    """The matrices under `root`, a folder that is created if it is missing."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def keep(self, tensors: Mapping[str, Tensor]) -> str:
        """Store a pair, unless the same one is stored. It is on the disk when this returns.

        Returns: its `basis_sha256`, to read it by.

        Raises:
            ValueError: not "a" and "b", or one is no matrix of float32.
        """
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32 or tensor.ndim != 2 or tensor.numel() == 0:
                raise ValueError(
                    f"basis {name!r} is {tensor.dtype} of shape {list(tensor.shape)}; "
                    "bases are kept as matrices of float32"
                )
        if set(tensors) != _NAMES:
            raise ValueError(f"a basis is 'a' and 'b', not {sorted(tensors)}")
        sha256 = basis_sha256(tensors)
        if not self.path(sha256).exists():
            self._write(self.path(sha256), tensors)
        return sha256

    def read(self, sha256: str) -> dict[str, Tensor]:
        """ "a" and "b", float32 on the CPU, verified.

        Raises:
            AdapterNotFound: no such pair.
            AdapterCorrupt: the file is not what its name says.
        """
        path = self.path(sha256)
        with _readable(path, sha256):
            tensors = load_file(path)
        if set(tensors) != _NAMES or basis_sha256(tensors) != sha256:
            raise AdapterCorrupt(
                f"{path}: the content does not match its name: the file was altered or damaged; "
                "import the adapter again"
            )
        return tensors

    def shapes(self, sha256: str) -> dict[str, tuple[int, ...]]:
        """The shapes of "a" and "b", from the file's header alone: nothing is verified.

        Raises:
            AdapterNotFound: no such pair.
            AdapterCorrupt: the file cannot be read.
        """
        path = self.path(sha256)
        with _readable(path, sha256), safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in _NAMES}

    def hashes(self) -> set[str]:
        """The hashes of all pairs that are here."""
        return {path.name.removesuffix(_SUFFIX) for path in self._root.glob(f"*{_SUFFIX}")}

    def sweep(self, used: Collection[str]) -> None:
        """Remove all pairs but `used`, and what crashed writers left. No writer may be at work."""
        for path in self._root.iterdir():
            if path.name.removesuffix(_SUFFIX) not in used:
                with suppress(OSError):  # not a file of ours, or not ours to remove
                    path.unlink()

    def path(self, sha256: str) -> Path:
        """Where a pair is, if it exists."""
        return self._root / f"{sha256}{_SUFFIX}"

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self._root.mkdir(exist_ok=True)
        part = self._root / f"{uuid.uuid4().hex}.part"
        try:
            numbers = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            with disk.system_errors():
                save_file(numbers, part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        disk.sync(self._root)


@contextmanager
def _readable(path: Path, sha256: str) -> Iterator[None]:
    """Turn what opening a file may raise into errors of the store."""
    try:
        yield
    except FileNotFoundError as error:
        raise AdapterNotFound(
            f"the stored basis {sha256} is not here: import the adapter again"
        ) from error
    except SafetensorError as error:
        raise AdapterCorrupt(f"{path}: {error}; import the adapter again") from error
