"""An adapter while it is trained: a parameter over a frozen base, by the code that serves it.

Knows no data, loss or optimizer.
"""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby

import torch
from torch import Tensor, nn

from adapters_store.manifest import Manifest
from server.adapters.batch.linears import install
from server.adapters.learning.side_by_side import Share, side_by_side
from server.adapters.learning.targets import resolve_targets
from server.adapters.loading.checks import check_tensors
from server.adapters.memory.matrices import SharedBases, need_of
from server.adapters.methods.basis_id import NO_BASIS
from server.adapters.methods.method import Delta, Method
from server.adapters.methods.registry import method_named
from server.adapters.methods.row_shares import Shares
from server.adapters.methods.trained_rows import FlatLayout, TrainedRows, TrainedVectors
from server.bases.model import BaseModel
from server.bases.seeded_matrices import Basis
from server.jobs.queue.train_options import MAX_RANK


class TrainableAdapter:
    """A new adapter of `base`, at its method's initial values: it changes nothing yet.

    Args:
        targets: see `resolve_targets`.
        options: the method's own (VeRA: `d_initial`, `trained`, `basis`; see each method), `alpha`,
            which sets the scale to alpha / rank, and `dropout`, the part of each input that the
            adapter does not see while gradients are recorded.
        shared: one copy of the matrices for all adapters that are trained at the same time.

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
        as_text = {name: str(value) for name, value in options.items()}
        self._base = base
        self._method = method_named(method, as_text)
        self._options = as_text | dict(self._method.options)
        self._rank = rank
        self._scale = _scale_of(self._method, rank, options)
        self._dropout = float(options.get("dropout", 0.0))
        self._basis = self._method.basis(seed)
        self.targets = resolve_targets(base, targets)
        self._current = install(base)
        need = need_of(self._method, base, self.targets, rank)
        self._loaded = (shared or SharedBases(base)).get(self._basis, need)
        paths = [path for path in base.targets if path in set(self.targets)]
        self._layout = FlatLayout(self._method, {path: base.targets[path] for path in paths}, rank)
        self._units = self._layout.units.to(base.device)
        starts = {path: Basis(seed, layer=i) for i, path in enumerate(base.targets)}
        initial = {
            path: self._method.initial(base.targets[path], rank, starts[path]) for path in paths
        }
        self._flat = nn.Parameter(self._layout.joined(initial).to(base.device))

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, flat: float32 [size], on the base's device."""
        return [self._flat]

    @property
    def kind(self) -> Hashable:
        """Adapters of one kind may learn as one; see `active_together`."""
        if not self._method.whole_batch or self._dropout:
            return id(self)
        return self._method, self._rank, self._scale, self.targets, self._basis

    def active(self) -> AbstractContextManager[None]:
        """While this is entered, the base model answers as the adapter would.

        Recompute activations (gradient checkpointing) only if the backward pass is inside as well.
        """
        return self._current.set_to({path: (delta,) for path, delta in self.deltas().items()})

    def deltas(
        self, others: Sequence["TrainableAdapter"] = (), tokens: Sequence[int] = ()
    ) -> dict[str, Delta]:
        """What it adds to each of its targets, for one forward and its backward pass.

        Args:
            others: of its kind, which have the rows that follow its own.
            tokens: how many rows are its own, and how many each of the others has.
        """
        vectors = TrainedVectors(
            self._layout,
            [self._flat, *(other._flat for other in others)],
            self._units,
            self._scale,
            self._base.dtype,
            Shares(tokens, self._base.device) if others else None,
        )
        layers = {
            path: (linear, TrainedRows(vectors, path))
            for path, linear in self._layout.linears.items()
        }
        return self._method.deltas(layers, self._rank, self._loaded.pairs, self._dropout)

    def tensors(self) -> dict[str, Tensor]:
        """The vectors as the store holds them, `<module path>.<vector>`: float32 on the CPU."""
        stored = (self._flat.detach() * self._units).cpu()
        return {
            f"{path}.{name}": vector.clone()
            for path, vectors in self._layout.parts(stored).items()
            for name, vector in vectors.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors()` gave, bit for bit. The parameter stays the same object.

        Raises:
            InvalidAdapter: a tensor that is missing, unknown, misshapen or not finite.
        """
        check_tensors(self._method, self._base, self.targets, self._rank, tensors)
        stored = {
            path: {name: tensors[f"{path}.{name}"] for name in shapes}
            for path, shapes in self._layout.shapes.items()
        }
        with torch.no_grad():
            self._flat.copy_(self._layout.joined(stored))

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


def active_together(
    base: BaseModel, shares: Sequence[tuple[TrainableAdapter | None, int]]
) -> AbstractContextManager[None]:
    """While this is entered, the base answers each adapter's tokens as that adapter would.

    Args:
        shares: adapters of `base` in the order of their tokens (padding included) in a batch, and
            how many each has; None: tokens that the base answers as it is. Neighbours of one kind
            are answered with the launches of one.
    """
    by_kind = groupby(shares, lambda share: None if share[0] is None else share[0].kind)
    deltas = side_by_side([_as_one(list(group)) for _, group in by_kind])
    return install(base).set_to({path: (delta,) for path, delta in deltas.items()})


def _as_one(shares: Sequence[tuple[TrainableAdapter | None, int]]) -> Share:
    """Neighbours of one kind, or none of whom has an adapter."""
    tokens = [count for _, count in shares]
    adapters = [adapter for adapter, _ in shares if adapter is not None]
    deltas = adapters[0].deltas(adapters[1:], tokens) if adapters else {}
    return deltas, sum(tokens)


def _scale_of(method: Method, rank: int, options: Mapping[str, float | str]) -> float:
    alpha = options.get("alpha")
    return method.default_scale(rank) if alpha is None else float(alpha) / rank
