"""The analysis of an adapter as frozen records: see `docs/inspect.md`. Knows no HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainedVector:
    """One trained tensor of a linear: its size, and how far it has moved since the start."""

    rms: float
    moved: float | None
    relative: float | None


@dataclass(frozen=True)
class LayerAnalysis:
    """One linear that the adapter changes; `shape` is [out, in] of its weight."""

    path: str
    layer: int | None
    module: str
    shape: tuple[int, int]
    trained: Mapping[str, TrainedVector]
    weight_norm: float
    norm: float
    relative_norm: float | None
    spectral_norm: float
    stable_rank: float
    effective_rank: float
    numerical_rank: int
    singular_values: tuple[float, ...]


@dataclass(frozen=True)
class SpaceSimilarity:
    """How much of one singular space lies in the other: 1 all, `chance` if they were random."""

    similarity: float | None
    directions: tuple[int, int]
    chance: float


@dataclass(frozen=True)
class LayerSimilarity:
    """One linear that both adapters change."""

    path: str
    layer: int | None
    module: str
    left: SpaceSimilarity
    right: SpaceSimilarity
    cosine: float | None


@dataclass(frozen=True)
class Comparison:
    """The other adapter, and the linears that both change."""

    id: str
    method: str
    rank: int
    layers: tuple[LayerSimilarity, ...]


@dataclass(frozen=True)
class Analysis:
    """What an adapter changes in its base. `raw` is the server's document."""

    id: str
    method: str
    rank: int
    trained_parameters: int
    relative_norm: float | None
    layers: tuple[LayerAnalysis, ...]
    comparison: Comparison | None
    raw: Mapping[str, Any] = field(repr=False)


def read_analysis(raw: Mapping[str, Any]) -> Analysis:
    comparison = raw["comparison"]
    return Analysis(
        id=raw["id"],
        method=raw["method"],
        rank=raw["rank"],
        trained_parameters=raw["trained_parameters"],
        relative_norm=raw["relative_norm"],
        layers=tuple(_read_layer(layer) for layer in raw["layers"]),
        comparison=None if comparison is None else _read_comparison(comparison),
        raw=raw,
    )


def _read_layer(raw: Mapping[str, Any]) -> LayerAnalysis:
    out_features, in_features = raw["shape"]
    return LayerAnalysis(
        path=raw["path"],
        layer=raw["layer"],
        module=raw["module"],
        shape=(out_features, in_features),
        trained={
            name: TrainedVector(vector["rms"], vector["moved"], vector["relative"])
            for name, vector in raw["trained"].items()
        },
        weight_norm=raw["weight_norm"],
        norm=raw["norm"],
        relative_norm=raw["relative_norm"],
        spectral_norm=raw["spectral_norm"],
        stable_rank=raw["stable_rank"],
        effective_rank=raw["effective_rank"],
        numerical_rank=raw["numerical_rank"],
        singular_values=tuple(raw["singular_values"]),
    )


def _read_comparison(raw: Mapping[str, Any]) -> Comparison:
    layers = tuple(
        LayerSimilarity(
            path=layer["path"],
            layer=layer["layer"],
            module=layer["module"],
            left=_read_side(layer["left"]),
            right=_read_side(layer["right"]),
            cosine=layer["cosine"],
        )
        for layer in raw["layers"]
    )
    return Comparison(raw["id"], raw["method"], raw["rank"], layers)


def _read_side(raw: Mapping[str, Any]) -> SpaceSimilarity:
    mine, theirs = raw["directions"]
    return SpaceSimilarity(raw["similarity"], (mine, theirs), raw["chance"])
