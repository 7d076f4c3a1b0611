"""Checks whether an adapter can be served on this base, before any of it is loaded.

Knows no files and no device.
"""

import math
import threading
from collections.abc import Mapping
from functools import cache, lru_cache, partial
from typing import Final

import torch
from torch import Tensor

from adapters_store.manifest import STORED_BASIS, Manifest
from adapters_store.weights import Content, TensorTable
from server.adapters.loading.overflow import LARGEST_UPDATE, check_update
from server.adapters.memory.matrices import BasisSource
from server.adapters.methods.basis_id import NO_BASIS, BasisId
from server.adapters.methods.checked_adapter import CheckedAdapter
from server.adapters.methods.method import Matrices, Method
from server.adapters.methods.registry import method_named
from server.bases.model import BaseModel
from server.bases.seeded_matrices import Basis
from server.bases.short_names import name_of
from server.errors import AdapterNotFinite, InvalidAdapter

_KNOWN_TABLES: Final = 64
_MOST_TERMS: Final = 1e8  # of a sum in an update, times what a method puts in as a constant

Shape = tuple[int, ...]


class AdapterChecks:
    """Thread-safe. Checks of seeds and tables take a millisecond each, and are remembered."""

    def __init__(self, base: BaseModel, source: BasisSource, max_rank: int) -> None:
        self._base = base
        self._source = source
        self._max_rank = max_rank
        self._known: set[tuple[str, int, str]] = set()
        self._lock = threading.Lock()
        self._check_table = lru_cache(maxsize=_KNOWN_TABLES)(self._check_shapes_of)

    def check(self, content: Content) -> Method:
        """Return the adapter's method if all is well.

        Raises:
            BasisMismatch: this build makes other matrices than those it was trained on.
            InvalidAdapter: anything else, naming the value or tensor at fault.
        """
        manifest = content.header.manifest
        method = method_named(manifest.method, manifest.options)
        self._check_base(manifest)
        self._check_numbers(manifest)
        self._check_table(method, manifest.targets, manifest.rank, content.table)
        self._check_finite(method, content)
        if manifest.basis_spec == STORED_BASIS:
            self._check_stored(method, manifest, content.table)
        elif manifest.basis_spec != NO_BASIS:
            self._check_seeded(manifest)
        return method

    def checked(self, content: Content) -> CheckedAdapter:
        """`check`, for those who look at the adapter's numbers."""
        method, manifest = self.check(content), content.header.manifest
        basis = BasisId.of(manifest)

        def matrices(path: str) -> Matrices:
            # One call for all layers: an imported basis is read from the disk and verified.
            return matrices_of(path if basis.per_layer else manifest.targets[0])

        matrices_of = cache(partial(self._source.matrices, basis))
        return CheckedAdapter(self._base, method, manifest, content.tensors(), matrices)

    def _check_base(self, manifest: Manifest) -> None:
        base = self._base
        if manifest.base_fingerprint != base.fingerprint:
            names = manifest.base_name, base.name
            short = name_of(manifest.base_fingerprint)
            remedy = f"serve its base with `--model {short}`" if short else "serve that base"
            raise InvalidAdapter(
                f"the adapter was trained on base {manifest.base_name!r} with fingerprint "
                f"{manifest.base_fingerprint}, this server holds {base.name!r} with fingerprint "
                f"{base.fingerprint}: {remedy}, or train again on this one{_of_files(names)}"
            )

    def _check_numbers(self, manifest: Manifest) -> None:
        if not 1 <= manifest.rank <= self._max_rank:
            raise InvalidAdapter(
                f"rank {manifest.rank} is not between 1 and {self._max_rank}, the largest that "
                "this server holds: raise max_rank to serve it"
            )
        if not math.isfinite(manifest.scale):
            raise AdapterNotFinite(f"scale {manifest.scale} is not finite: train it again")

    def _check_finite(self, method: Method, content: Content) -> None:
        """All numbers at once; each tensor alone where one is suspicious."""
        manifest = content.header.manifest
        least, greatest = (float(value) for value in torch.aminmax(content.numbers))
        if not math.isfinite(least) or not math.isfinite(greatest):
            check_finite(content.tensors())
        largest = max(-least, greatest, 1.0)
        if largest**2 * max(abs(manifest.scale), 1.0) * _MOST_TERMS > LARGEST_UPDATE:
            check_update(
                method,
                self._base,
                manifest.targets,
                manifest.rank,
                manifest.scale,
                content.tensors(),
                partial(self._source.matrices, BasisId.of(manifest)),
            )

    def _check_shapes_of(
        self, method: Method, targets: tuple[str, ...], rank: int, table: TensorTable
    ) -> None:
        check_shapes(method, self._base, targets, rank, table.shapes)

    def _check_stored(self, method: Method, manifest: Manifest, table: TensorTable) -> None:
        """Compute the plain formula on shapes: an imported basis may be too small for a layer."""
        shapes = self._source.stored_shapes(BasisId.of(manifest))
        for path in manifest.targets:
            linear = self._base.targets[path]
            names = method.shapes(linear, manifest.rank)
            vectors = {
                name: torch.empty(table.shapes[f"{path}.{name}"], device="meta") for name in names
            }
            method.dense(linear, manifest.rank, shapes, vectors, manifest.scale)

    def _check_seeded(self, manifest: Manifest) -> None:
        key = (manifest.basis_spec, manifest.seed, manifest.basis_sha256)
        with self._lock:
            if key in self._known:
                return
        try:
            basis = Basis(manifest.seed, manifest.basis_spec)
        except ValueError as error:
            raise InvalidAdapter(str(error)) from error
        basis.check(manifest.basis_sha256)
        with self._lock:
            self._known.add(key)


def check_tensors(
    method: Method,
    base: BaseModel,
    targets: tuple[str, ...],
    rank: int,
    tensors: Mapping[str, Tensor],
) -> None:
    """Every vector of every target and no other, in its shape, finite.

    Raises:
        InvalidAdapter: naming the first target or tensor at fault.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_shapes(method, base, targets, rank, shapes)
    check_finite(tensors)


def check_shapes(
    method: Method,
    base: BaseModel,
    targets: tuple[str, ...],
    rank: int,
    shapes: Mapping[str, Shape],
) -> None:
    """`check_tensors`, of shapes alone."""
    if not targets:
        raise InvalidAdapter("the adapter targets no linear: publish it again with its targets")
    expected: dict[str, Shape] = {}
    for path in targets:
        if path not in base.targets:
            raise InvalidAdapter(f"target {path!r} is not a linear of base {base.name!r}")
        for name, shape in method.shapes(base.targets[path], rank).items():
            expected[f"{path}.{name}"] = tuple(shape)
    for name, shape in expected.items():
        if name not in shapes:
            raise InvalidAdapter(f"tensor {name!r} is missing")
        if shapes[name] != shape:
            raise InvalidAdapter(
                f"tensor {name!r} has shape {list(shapes[name])}, not {list(shape)}"
            )
    for name in shapes:
        if name not in expected:
            raise InvalidAdapter(f"tensor {name!r} belongs to no target of the adapter")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises AdapterNotFinite naming the first tensor with a value that is not finite."""
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise AdapterNotFinite(
                f"tensor {name!r} holds a value that is not finite: train the adapter again"
            )


def all_finite(values: Tensor) -> bool:
    """Whether no value is infinite or not a number, as the least or the greatest would show.

    A twentieth of the time of `isfinite`, which for an adapter of an 8B model is 3 ms on a CPU.
    """
    least, greatest = torch.aminmax(values)
    return math.isfinite(least) and math.isfinite(greatest)


def _of_files(names: tuple[str, str]) -> str:
    """Why two bases of almost one name may differ."""
    quantised = any(name.lower().endswith(".gguf") for name in names)
    return ". Each GGUF file, and the weights that it was made of, are bases apart" * quantised
