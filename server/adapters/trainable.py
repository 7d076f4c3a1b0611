"""One adapter while it learns: parameters over a frozen base, through the layers that serve it.

Knows no data, loss or optimizer.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from adapters_store.manifest import Manifest
from server.adapters.basis_pairs import make_pair, on_device
from server.adapters.checks import check_tensors
from server.adapters.linears import install
from server.adapters.methods import method_named
from server.adapters.targets import resolve_targets
from server.bases.model import BaseModel
from server.bases.seeded import Basis

MAX_RANK = 1024


class TrainableAdapter:
    """A new adapter of `base`, at its method's initial values: it changes nothing yet.

    Args:
        targets: see `resolve_targets`.
        options: what the method reads at the start (VeRA: `d_initial`), and `dropout`, the part of
            each input that the adapter does not see while gradients are recorded.

    Raises:
        InvalidRequest: a target that this base does not have.
        InvalidAdapter: an unknown method.
        ValueError: a rank or seed out of range.
    """

    def __init__(
        self,
        base: BaseModel,
        method: str,
        rank: int,
        seed: int,
        targets: str | Sequence[str],
        options: Mapping[str, float],
    ) -> None:
        if not 1 <= rank <= MAX_RANK:
            raise ValueError(f"rank {rank} is not between 1 and {MAX_RANK}")
        self._base = base
        self._method = method_named(method)
        self._rank = rank
        self._seed = seed
        self._options = dict(options)
        self.targets = resolve_targets(base, targets)
        self._current = install(base)
        pair = make_pair(base, seed, self._method.basis_size(rank))
        self._pair = on_device(pair, base.device)
        self._layers = {path: self._new_layer(path) for path in self.targets}

    def parameters(self) -> list[nn.Parameter]:
        """Float32, on the base's device, always in the same order."""
        return [
            parameter for layer in self._layers.values() for parameter in layer.parameters.values()
        ]

    def active(self) -> AbstractContextManager[None]:
        """While this is entered, the base model answers as the adapter would.

        Recompute activations (gradient checkpointing) only if the backward pass is inside as well.
        """
        layers = {path: (self._base.targets[path], layer) for path, layer in self._layers.items()}
        dropout = float(self._options.get("dropout", 0.0))
        deltas = self._method.deltas(layers, self._rank, self._pair, dropout)
        return self._current.set_to({path: (delta,) for path, delta in deltas.items()})

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
        basis = Basis(self._seed)
        return Manifest(
            method=self._method.name,
            rank=self._rank,
            scale=1.0,
            seed=self._seed,
            basis_spec=basis.spec,
            basis_sha256=basis.tile_hash(),
            base_name=self._base.name,
            base_fingerprint=self._base.fingerprint,
            targets=self.targets,
            created_at=created_at,
            options={name: str(value) for name, value in self._options.items()},
            provenance=dict(provenance),
        )

    def _new_layer(self, path: str) -> "_TrainedRows":
        linear = self._base.targets[path]
        initial = self._method.initial(linear, self._rank, self._options)
        unit = self._method.unit(linear, self._rank)
        return _TrainedRows(
            {
                name: nn.Parameter((value / unit[name]).to(self._base.device))
                for name, value in initial.items()
            },
            unit,
            self._base.dtype,
        )


class _TrainedRows:
    """`server.adapters.method.Rows` in training: every token reads the same parameters."""

    slots: Tensor | None = None

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        unit: Mapping[str, float],
        dtype: torch.dtype,
    ) -> None:
        self.parameters = parameters
        self.unit = unit
        self._dtype = dtype

    def stored(self, name: str) -> Tensor:
        parameter: Tensor = self.parameters[name]
        scale = self.unit[name]
        return (parameter if scale == 1 else parameter * scale).to(self._dtype)

    def per_token(self, name: str) -> Tensor:
        return self.stored(name)
