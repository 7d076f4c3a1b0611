"""One adapter while it learns: parameters over a frozen base, through the layers that serve it.

Knows no data, loss or optimizer.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters_store.manifest import Manifest
from server.adapters.basis_id import NO_BASIS
from server.adapters.checks import check_tensors
from server.adapters.linears import install
from server.adapters.matrices import SharedBases, need_of
from server.adapters.method import Delta, Method, Run
from server.adapters.methods import method_named
from server.adapters.side_by_side import side_by_side
from server.adapters.targets import resolve_targets
from server.bases.model import BaseModel, TargetLinear
from server.bases.seeded import Basis

MAX_RANK = 1024


class TrainableAdapter:
    """A new adapter of `base`, at its method's initial values: it changes nothing yet.

    Args:
        targets: see `resolve_targets`.
        options: the method's own (VeRA: `d_initial`, `trained`, `basis`; see each method), `alpha`,
            which sets the scale to alpha / rank, and `dropout`, the part of each input that the
            adapter does not see while gradients are recorded.
        shared: where adapters that learn beside it get their matrices, of which there is one copy.

    Raises:
        InvalidRequest: a target that this base does not have.
        InvalidAdapter: an unknown method, or an option that it does not take.
        ValueError: a rank or seed out of range.
    """

    def __init__(
        self,
        base: BaseModel,
        method: str,
        rank: int,
        seed: int,
        targets: str | Sequence[str],
        options: Mapping[str, float | str],
        shared: SharedBases | None = None,
    ) -> None:
        if not 1 <= rank <= MAX_RANK:
            raise ValueError(f"rank {rank} is not between 1 and {MAX_RANK}")
        told = {name: str(value) for name, value in options.items()}
        self._base = base
        self._method = method_named(method, told)
        self._options = told | dict(self._method.options)
        self._rank = rank
        self._scale = _scale_of(self._method, rank, options)
        self._dropout = float(options.get("dropout", 0.0))
        self._basis = self._method.basis(seed)
        self.targets = resolve_targets(base, targets)
        self._current = install(base)
        need = need_of(self._method, base, self.targets, rank)
        self._held = (shared or SharedBases(base)).get(self._basis, need)
        self._layers = {
            path: self._new_layer(path, Basis(seed, layer=index))
            for index, path in enumerate(base.targets)
            if path in set(self.targets)
        }

    def parameters(self) -> list[nn.Parameter]:
        """Float32, on the base's device, always in the same order."""
        return [
            parameter for layer in self._layers.values() for parameter in layer.parameters.values()
        ]

    def active(self) -> AbstractContextManager[None]:
        """While this is entered, the base model answers as the adapter would.

        Recompute activations (gradient checkpointing) only if the backward pass is inside as well.
        """
        return self._current.set_to({path: (delta,) for path, delta in self.deltas().items()})

    def deltas(self) -> dict[str, Delta]:
        """What it adds to each of its targets, for one forward and its backward pass."""
        layers = {
            path: (self._base.targets[path], _TrainedRows(layer))
            for path, layer in self._layers.items()
        }
        return self._method.deltas(layers, self._rank, self._held.bases, self._dropout)

    def tensors(self) -> dict[str, Tensor]:
        """The vectors as the store holds them, `<module path>.<vector>`: float32 on the CPU."""
        return {
            f"{path}.{name}": (parameter.detach() * layer.unit[name]).cpu()
            for path, layer in self._layers.items()
            for name, parameter in layer.parameters.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors()` gave, bit for bit. The parameters stay the same objects.

        Raises:
            InvalidAdapter: a tensor that is missing, unknown, misshapen or not finite.
        """
        check_tensors(self._method, self._base, self.targets, self._rank, tensors)
        with torch.no_grad():
            for path, layer in self._layers.items():
                for name, parameter in layer.parameters.items():
                    parameter.copy_(tensors[f"{path}.{name}"] / layer.unit[name])

    def manifest(self, *, created_at: int, provenance: Mapping[str, str]) -> Manifest:
        """The header under which `tensors()` may be published. `created_at`: seconds since 1970."""
        basis = self._basis
        seeded = None if basis.spec == NO_BASIS else Basis(basis.seed, basis.spec)
        return Manifest(
            method=self._method.name,
            rank=self._rank,
            scale=self._scale,
            seed=basis.seed,
            basis_spec=basis.spec,
            basis_sha256="" if seeded is None else seeded.tile_hash(),
            base_name=self._base.name,
            base_fingerprint=self._base.fingerprint,
            targets=self.targets,
            created_at=created_at,
            options=self._options,
            provenance=dict(provenance),
        )

    def _new_layer(self, path: str, start: Basis) -> "_Layer":
        linear = self._base.targets[path]
        initial = self._method.initial(linear, self._rank, start)
        unit = self._method.unit(linear, self._rank)
        parameters = {
            name: nn.Parameter((value / unit[name]).to(self._base.device))
            for name, value in initial.items()
        }
        return _Layer(
            self._method, linear, self._rank, self._scale, parameters, unit, self._base.dtype
        )


def active_together(
    base: BaseModel, shares: Sequence[tuple[TrainableAdapter | None, int]]
) -> AbstractContextManager[None]:
    """While this is entered, the base answers each adapter's tokens as that adapter would.

    Args:
        shares: adapters of `base` in the order of their tokens (padding included) in a batch, and
            how many each has; None: tokens that the base answers as it is.
    """
    deltas = side_by_side(
        [({} if adapter is None else adapter.deltas(), tokens) for adapter, tokens in shares]
    )
    return install(base).set_to({path: (delta,) for path, delta in deltas.items()})


def _scale_of(method: Method, rank: int, options: Mapping[str, float | str]) -> float:
    alpha = options.get("alpha")
    return method.default_scale(rank) if alpha is None else float(alpha) / rank


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer's parameters."""

    method: Method
    linear: TargetLinear
    rank: int
    scale: float
    parameters: Mapping[str, nn.Parameter]
    unit: Mapping[str, float]
    dtype: torch.dtype

    def folded(self) -> dict[str, Tensor]:
        """As deltas read them, differentiable."""
        vectors: dict[str, Tensor] = {
            name: parameter if self.unit[name] == 1 else parameter * self.unit[name]
            for name, parameter in self.parameters.items()
        }
        folded = self.method.fold(self.linear, self.rank, vectors, self.scale)
        return {name: vector.to(self.dtype) for name, vector in folded.items()}


class _TrainedRows:
    """`server.adapters.method.Rows` in training: every token reads the same parameters.

    Folded once for all that reads them. Units and scales are numbers, so nothing of the fold is
    freed by a backward pass, and the passes of several parts of a batch may share it.
    """

    __slots__ = ("_folded", "_layer")

    rows: Tensor | None = None
    runs: tuple[Run, ...] = ()

    def __init__(self, layer: _Layer) -> None:
        self._layer = layer
        self._folded: dict[str, Tensor] | None = None

    def stored(self, name: str) -> Tensor:
        if self._folded is None:
            self._folded = self._layer.folded()
        return self._folded[name]

    def per_token(self, name: str) -> Tensor:
        return self.stored(name)
