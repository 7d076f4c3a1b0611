"""Measures what an adapter changes in each linear: how much, and in how many directions.

Knows no store, no thread and no request. The figures are explained in
`server.adapters.inspecting.findings`.
"""

import math
import re
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from adapters_store.manifest import STORED_BASIS
from server.adapters.inspecting.findings import (
    Comparison,
    Findings,
    LayerFindings,
    LayerSimilarity,
    SpaceSimilarity,
    TrainedVector,
)
from server.adapters.inspecting.spectrum import (
    Spectrum,
    chance_similarity,
    cosine,
    spectrum_of_matrix,
    spectrum_of_product,
    subspace_similarity,
)
from server.adapters.methods.checked_adapter import CheckedAdapter
from server.bases.model import TargetLinear

DIRECTIONS: Final = 64
"""How many singular values are reported, and singular vectors compared, at most."""

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


def analyse(
    adapter: CheckedAdapter,
    other: CheckedAdapter | None,
    weight_norm: Callable[[TargetLinear], float],
    advance: Callable[[], None],
) -> Findings:
    """Analyse every target of `adapter`, and compare it with `other` where both adapt it.

    Args:
        weight_norm: the Frobenius norm of a linear's weight.
        advance: called after each linear.
    """
    base, targets = adapter.base, set(adapter.manifest.targets)
    shared = set() if other is None else targets & set(other.manifest.targets)
    layers, similar = [], []
    for path, linear in base.targets.items():
        if path not in targets:
            continue
        spectrum = _spectrum(adapter, linear, spaces=path in shared)
        layers.append(_findings(adapter, linear, spectrum, weight_norm(linear)))
        if other is not None and path in shared:
            similar.append(_similarity(path, spectrum, _spectrum(other, linear, spaces=True)))
        advance()
    return Findings(
        method=adapter.method.name,
        rank=adapter.manifest.rank,
        trained_parameters=sum(tensor.numel() for tensor in adapter.tensors.values()),
        relative_norm=_ratio(
            math.hypot(*(layer.norm for layer in layers)),
            math.hypot(*(layer.weight_norm for layer in layers)),
        ),
        layers=tuple(layers),
        comparison=None
        if other is None
        else Comparison(other.method.name, other.manifest.rank, tuple(similar)),
    )


def _spectrum(adapter: CheckedAdapter, linear: TargetLinear, *, spaces: bool) -> Spectrum:
    """Of the update to one target: by thin factors, or of the whole matrix where there are none."""
    factors = adapter.factors(linear)
    if factors is None:
        return spectrum_of_matrix(adapter.update(linear), spaces=spaces)
    return spectrum_of_product(*factors, spaces=spaces)


def _findings(
    adapter: CheckedAdapter, linear: TargetLinear, spectrum: Spectrum, weight_norm: float
) -> LayerFindings:
    layer, module = place_of(linear.path)
    return LayerFindings(
        path=linear.path,
        layer=layer,
        module=module,
        shape=(linear.out_features, linear.in_features),
        trained=_trained(adapter, linear),
        weight_norm=weight_norm,
        norm=spectrum.norm,
        relative_norm=_ratio(spectrum.norm, weight_norm),
        spectral_norm=spectrum.spectral_norm,
        stable_rank=spectrum.stable_rank,
        effective_rank=spectrum.effective_rank,
        numerical_rank=spectrum.numerical_rank,
        singular_values=tuple(spectrum.values[:DIRECTIONS].tolist()),
    )


def _similarity(path: str, first: Spectrum, second: Spectrum) -> LayerSimilarity:
    layer, module = place_of(path)
    return LayerSimilarity(
        path=path,
        layer=layer,
        module=module,
        left=_side(first.left_space(DIRECTIONS), second.left_space(DIRECTIONS)),
        right=_side(first.right_space(DIRECTIONS), second.right_space(DIRECTIONS)),
        cosine=cosine(first, second),
    )


def _side(x: Tensor, y: Tensor) -> SpaceSimilarity:
    directions = (x.shape[1], y.shape[1])
    return SpaceSimilarity(
        subspace_similarity(x, y), directions, chance_similarity(len(x), *directions)
    )


def _trained(adapter: CheckedAdapter, linear: TargetLinear) -> dict[str, TrainedVector]:
    rank = adapter.manifest.rank
    units = adapter.method.unit(linear, rank)
    starts = adapter.method.initial(linear, rank, _Unknown())
    if adapter.manifest.basis_spec == STORED_BASIS:  # imported: its start is not known
        starts = {name: torch.full_like(start, math.nan) for name, start in starts.items()}
    return {
        name: _trained_vector(vector.double() / units[name], starts[name].double() / units[name])
        for name, vector in adapter.vectors(linear).items()
    }


def _trained_vector(vector: Tensor, start: Tensor) -> TrainedVector:
    moved, began = _rms(vector - start), _rms(start)
    if math.isnan(moved):
        return TrainedVector(_rms(vector), None, None)
    return TrainedVector(_rms(vector), moved, moved / began if began else None)


def place_of(path: str) -> tuple[int | None, str]:
    """The number of a linear's layer, and its name within the layer.

    "model.layers.3.mlp.up_proj" is (3, "mlp.up_proj"); a path without a number is (None, path).
    """
    number = _NUMBER.search(path)
    return (None, path) if number is None else (int(number[1]), path[number.end() :])


class _Unknown:
    """`Matrices` that are not stored. They are not numbers, and so is whatever reads them."""

    def a(self, rank: int, in_features: int, dtype: torch.dtype) -> Tensor:
        return torch.full((rank, in_features), math.nan, dtype=dtype)

    def b(self, out_features: int, rank: int, dtype: torch.dtype) -> Tensor:
        return torch.full((out_features, rank), math.nan, dtype=dtype)


def _rms(values: Tensor) -> float:
    return math.sqrt(float(values.square().mean()))


def _ratio(norm: float, weight_norm: float) -> float | None:
    return norm / weight_norm if weight_norm else None
