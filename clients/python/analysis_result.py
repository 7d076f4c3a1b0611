"""The analysis of an adapter as frozen records: see `docs/inspect.md`. Knows no HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from .record import Record


@dataclass(frozen=True)
class TrainedVector(Record):
    """One trained tensor of a linear: its size, and how far it has moved since the start."""

    rms: float
    moved: float | None
    relative: float | None


@dataclass(frozen=True)
class LinearRecord(Record):
    """Figures of one linear: `module` of the layer `layer`, at `path` in the model."""

    path: str
    layer: int | None
    module: str


@dataclass(frozen=True)
class LayerAnalysis(LinearRecord):
    """One linear that the adapter changes; `shape` is [out, in] of its weight."""

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

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls._read(
            raw,
            shape=tuple(raw["shape"]),
            trained={name: TrainedVector.of(vector) for name, vector in raw["trained"].items()},
            singular_values=tuple(raw["singular_values"]),
        )


@dataclass(frozen=True)
class SpaceSimilarity(Record):
    """How much of one singular space lies in the other: 1 all, `chance` if they were random."""

    similarity: float | None
    directions: tuple[int, int]
    chance: float

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls._read(raw, directions=tuple(raw["directions"]))


@dataclass(frozen=True)
class LayerSimilarity(LinearRecord):
    """One linear that both adapters change."""

    left: SpaceSimilarity
    right: SpaceSimilarity
    cosine: float | None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        left, right = SpaceSimilarity.of(raw["left"]), SpaceSimilarity.of(raw["right"])
        return cls._read(raw, left=left, right=right)


@dataclass(frozen=True)
class Comparison(Record):
    """The other adapter, and the linears that both change."""

    id: str
    method: str
    rank: int
    layers: tuple[LayerSimilarity, ...]

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls._read(raw, layers=tuple(map(LayerSimilarity.of, raw["layers"])))


@dataclass(frozen=True)
class Analysis(Record):
    """What an adapter changes in its base. `raw` is the server's document."""

    id: str
    method: str
    rank: int
    trained_parameters: int
    relative_norm: float | None
    layers: tuple[LayerAnalysis, ...]
    comparison: Comparison | None
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        comparison = raw["comparison"]
        return cls._read(
            raw,
            layers=tuple(map(LayerAnalysis.of, raw["layers"])),
            comparison=None if comparison is None else Comparison.of(comparison),
        )
