"""Reads a checkpoint's tensors as vectors of the linears of a base: what all imports share.

Knows no folders, no store and no method of PEFT's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

import torch
from torch import Tensor

from adapters_store.peft.adapter_config import PeftConfig
from adapters_store.peft.folder import LAYER_PREFIX, SHARED_PREFIX, PeftTensors
from adapters_store.peft.generator import ERAS, HALVES, Era, Half, Projections, rounded
from adapters_store.store_errors import InvalidCheckpoint
from server.adapters.methods.method import Method
from server.bases.model import BaseModel, TargetLinear
from server.errors import InvalidRequest

_BASE_DTYPES: Final = ("float32", *HALVES)


@dataclass(frozen=True)
class Origin:
    """How an adapter was trained, as far as it matters and is not in its checkpoint.

    It matters where the random matrices were not saved: `torch_era` ("2.11" or earlier, "2.12" or
    later) and `half_dtype` say how RandLoRA's dense ones were drawn; `base_dtype` is the dtype of
    the base model, to which PEFT rounds all of them.

    Raises:
        InvalidRequest: a value that is none of these.
    """

    torch_era: str = ""
    half_dtype: str = ""
    base_dtype: str = "float32"

    def __post_init__(self) -> None:
        for param, known in (
            ("torch_era", ("", *ERAS)),
            ("half_dtype", ("", *HALVES)),
            ("base_dtype", _BASE_DTYPES),
        ):
            value = getattr(self, param)
            if value not in known:
                choices = ", ".join(filter(None, known))
                raise InvalidRequest(f"{param}={value!r} is none of {choices}", param=param)

    def drawn(self) -> tuple[Era, Half]:
        """Era and half type. Raises InvalidCheckpoint: they were left out."""
        if not self.torch_era or not self.half_dtype:
            raise InvalidCheckpoint(
                "the checkpoint does not hold its random matrices (save_projection=False), and "
                "does not say which torch drew them, into which half type: torch up to 2.11 and "
                "from 2.12 on draw unrelated ones. Save it again with save_projection=True where "
                "it was trained; or, if you know, give torch_era (2.11 or 2.12) and half_dtype "
                "(bfloat16, or float16 where the accelerator has no bfloat16)"
            )
        return cast(Era, self.torch_era), cast(Half, self.half_dtype)

    def as_trained(self, projections: Projections) -> tuple[Tensor, Tensor]:
        """A and B as the layers read them, rounded to the dtype of their base."""
        a, b = (
            torch.from_numpy(rounded(matrix, self.base_dtype))
            for matrix in (projections.a, projections.b)
        )
        return a, b


@dataclass(frozen=True)
class Imported:
    """An adapter in our terms. `basis`: the matrices it brings, "a" and "b", or None."""

    method: Method
    rank: int
    scale: float
    tensors: Mapping[str, Tensor]
    basis: Mapping[str, Tensor] | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class IncomingCheckpoint:
    """A checkpoint to read, the base that will serve it, and the largest rank that is served.

    Its methods raise InvalidCheckpoint, naming the tensor or field at fault.
    """

    base: BaseModel
    config: PeftConfig
    tensors: PeftTensors
    origin: Origin
    max_rank: int

    def layers(self, vectors: Sequence[str], shared: Sequence[str] = ()) -> dict[str, TargetLinear]:
        """The linears that it changes, by path, in the order of the base; there is at least one.

        Args:
            vectors: of a layer; each tensor is `base_model.model.<path>.<one of vectors>`.
            shared: matrices that stand once for all layers, or under each layer as well.
        """
        names = self.tensors.names - {f"{SHARED_PREFIX}{name}" for name in shared}
        paths = {_path(self.base, name, (*vectors, *shared)) for name in sorted(names)}
        if not paths:
            raise InvalidCheckpoint(
                f"there is no tensor named {LAYER_PREFIX}<module>.{vectors[0]}: the adapter is "
                "empty"
            )
        return {path: linear for path, linear in self.base.targets.items() if path in paths}

    def rank(self, rank: float) -> int:
        """Return `rank` if it can be served."""
        if rank != int(rank) or not 1 <= rank <= self.max_rank:
            raise InvalidCheckpoint(
                f"adapter_config.json: r={rank} is not a whole number between 1 and "
                f"{self.max_rank}, the largest rank that this server holds: for a larger one, "
                "start the server with a larger --max-rank"
            )
        return int(rank)

    def vector(self, path: str, vector: str, shape: tuple[int, ...]) -> Tensor:
        """One layer's tensor, float32, of `shape`."""
        name = f"{LAYER_PREFIX}{path}.{vector}"
        stored = self.tensors.shape(name)
        if stored != shape:
            linear = self.base.targets[path]
            raise InvalidCheckpoint(
                f"tensor {name!r} has shape {list(stored)}, not the {list(shape)} that fits the "
                f"linear [{linear.out_features}, {linear.in_features}] of base "
                f"{self.base.name!r}: the config or the base does not belong to it"
            )
        return self._read(name)

    def shared_pair(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Tensor, Tensor] | None:
        """The two matrices that all layers share, by name and shape, or None if none was saved.

        PEFT 0.21 saves RandLoRA's under every layer as well, and loads whichever comes last.
        """
        copies = {
            vector: sorted(name for name in self.tensors.names if name.endswith(f".{vector}"))
            for vector in shapes
        }
        if not any(copies.values()):
            return None
        first, second = (
            self._shared(vector, copies[vector], shape) for vector, shape in shapes.items()
        )
        return first, second

    def _shared(self, vector: str, copies: Sequence[str], shape: tuple[int, ...]) -> Tensor:
        top = f"{SHARED_PREFIX}{vector}"
        first = copies[0] if copies and top not in copies else top
        stored = self.tensors.shape(first)
        if stored != shape:
            raise InvalidCheckpoint(
                f"tensor {first!r} has shape {list(stored)}, not {list(shape)} as its rank and "
                f"targets need on base {self.base.name!r}: the checkpoint belongs to another base, "
                "or is damaged"
            )
        matrix = self._read(first)
        for name in copies:
            if name != first and not torch.equal(self.tensors.read(name), matrix):
                raise InvalidCheckpoint(
                    f"tensor {name!r} differs from {first!r}, of which it should be a copy: save "
                    "the adapter again"
                )
        return matrix

    def _read(self, name: str) -> Tensor:
        """A tensor whose values the dtype of the base can hold."""
        tensor, dtype = self.tensors.read(name), self.base.dtype
        largest = tensor.abs().max()
        if largest > torch.finfo(dtype).max:
            raise InvalidCheckpoint(
                f"tensor {name!r} holds {largest:.3g}, which is too large for the {dtype} that "
                "this server runs in: serve with --dtype bfloat16 or float32"
            )
        return tensor


def _path(base: BaseModel, name: str, vectors: Sequence[str]) -> str:
    ending = next((f".{vector}" for vector in vectors if name.endswith(f".{vector}")), None)
    if ending is None or not name.startswith(LAYER_PREFIX):
        raise InvalidCheckpoint(
            f"tensor {name!r} cannot be served: only {', '.join(vectors)} of linears can. Train "
            "again without biases, embeddings and modules_to_save, or merge the adapter into its "
            "base with PEFT"
        )
    path = name.removeprefix(LAYER_PREFIX).removesuffix(ending)
    if path in base.targets:
        return path
    reason = (
        "the embeddings and the output head are never adapted: train again without them"
        if path in _ends_of(base)
        else f"its linears are named like {next(iter(base.targets))!r}, so the checkpoint belongs "
        "to another base"
    )
    raise InvalidCheckpoint(
        f"tensor {name!r}: {path!r} is not a linear of base {base.name!r} that can be adapted; "
        f"{reason}"
    )


def _ends_of(base: BaseModel) -> set[str]:
    ends = (base.model.get_input_embeddings(), base.model.get_output_embeddings())
    return {path for path, module in base.model.named_modules() if module in ends}


def targets_of(tensors: Iterable[str]) -> tuple[str, ...]:
    """The module paths that tensors named `<path>.<vector>` belong to, sorted."""
    return tuple(sorted({name.rpartition(".")[0] for name in tensors}))
