"""The figures that an analysis gives. Knows no tensors, so that the API may import it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainedVector:
    """How large one trained tensor of a layer is, and how far training has moved it.

    All in the unit in which it is trained (`Method.unit`), so that layers of different shapes can
    be compared. `rms`: root mean square of its entries. `moved`: that of the difference to where it
    began; None where the start is not known (a random one that is not stored, or an import).
    `relative`: `moved` over the start's own root mean square, None where it began at zero. For
    VeRA's `d` this is the magnitude of adaptation of figure 3 (arXiv 2310.11454).
    """

    rms: float
    moved: float | None
    relative: float | None


@dataclass(frozen=True)
class LayerFindings:
    """One linear: its update dW, compared with its weight W, both [out, in].

    `layer` and `module` are the path's number and what is behind it ("model.layers.3.mlp.up_proj"
    is layer 3, module "mlp.up_proj"). `norm`: Frobenius; `relative_norm`: over `weight_norm`, that
    of W; the ranks are explained in `server.adapters.inspecting.spectrum.Spectrum`.
    `singular_values`: the largest, falling.
    """

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
    """Two adapters' singular spaces on one side of a linear.

    `similarity`: see `server.adapters.inspecting.spectrum.subspace_similarity`; None if one update
    is zero. `directions`: how many of each adapter's were compared. `chance`: the similarity of
    random spaces that large.
    """

    similarity: float | None
    directions: tuple[int, int]
    chance: float


@dataclass(frozen=True)
class LayerSimilarity:
    """Two adapters in one linear. `left`: what they can write (B); `right`: what they read (A).

    `cosine` is that of the two updates as long vectors; None if one is zero.
    """

    path: str
    layer: int | None
    module: str
    left: SpaceSimilarity
    right: SpaceSimilarity
    cosine: float | None


@dataclass(frozen=True)
class Comparison:
    """An adapter compared with another of the same base, in the linears that both adapt."""

    method: str
    rank: int
    layers: tuple[LayerSimilarity, ...]


@dataclass(frozen=True)
class Findings:
    """All figures of one analysis. `relative_norm` is that of all updates over all weights."""

    method: str
    rank: int
    trained_parameters: int
    relative_norm: float | None
    layers: tuple[LayerFindings, ...]
    comparison: Comparison | None
