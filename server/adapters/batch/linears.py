"""Puts adapters between a base model and its linears, without changing what transformers sees.

Knows no method, bank or store. The model keeps its modules, names and state; only the function that
a target linear runs is replaced, by one that looks for deltas first.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from server.adapters.methods.method import Delta
from server.bases.model import BaseModel

Deltas = Mapping[str, Sequence[Delta]]

_NONE: Deltas = {}


class Current:
    """The deltas of the running forward, by module path. Linears at other paths run as they are."""

    def __init__(self) -> None:
        self.deltas: Deltas = _NONE

    @contextmanager
    def set_to(self, deltas: Deltas) -> Iterator[None]:
        """Make them current. Not re-entrant: a model runs one batch at a time."""
        if self.deltas is not _NONE:
            raise RuntimeError("a forward with adapters is already running on this model")
        self.deltas = deltas
        try:
            yield
        finally:
            self.deltas = _NONE


class AdaptedLinear:
    """Stands in for the `forward` of one target linear."""

    def __init__(self, path: str, module: nn.Module, current: Current) -> None:
        self.current = current
        self._path = path
        self._plain = module.forward

    def __call__(self, x: Tensor) -> Tensor:
        deltas = self.current.deltas.get(self._path)
        if deltas is None:
            plain: Tensor = self._plain(x)
            return plain
        shape = x.shape
        rows = x.reshape(-1, shape[-1])
        y: Tensor = self._plain(rows)
        for delta in deltas:
            y = delta(x, rows, y)
        return y.view(*shape[:-1], y.shape[-1])


def install(base: BaseModel) -> Current:
    """Wrap every target of `base`, once; later calls give the same `Current`."""
    current = Current()
    for path, target in base.targets.items():
        forward = target.module.forward
        if isinstance(forward, AdaptedLinear):
            return forward.current
        target.module.forward = AdaptedLinear(path, target.module, current)
    return current
