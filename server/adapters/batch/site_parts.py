"""Where adapters' kernels find each linear of a site, in its product and in an adapter's row."""

from server.adapters.batch.fused_plan import FusedGroup
from server.adapters.batch.sites import Site
from server.adapters.kernels.lora_expand import LoraPart
from server.adapters.kernels.vera_product import VeraPart
from server.adapters.methods.method import BasisPair


class KernelOffsets:
    """Where kernels find each linear of a site in y and in a row; made once per kind of group."""

    def __init__(self) -> None:
        self._vera: dict[
            tuple[FusedGroup, Site], list[tuple[BasisPair, tuple[VeraPart | None, ...]]]
        ] = {}
        self._lora: dict[tuple[FusedGroup, Site], tuple[LoraPart, ...]] = {}

    def vera(
        self, group: FusedGroup, site: Site
    ) -> list[tuple[BasisPair, tuple[VeraPart | None, ...]]]:
        """For each pair that linears of the site read: a part for each linear, None if it has none.

        One pair, but for bases of each layer's own.
        """
        made = self._vera.get((group, site))
        if made is None:
            by_pair: dict[BasisPair, dict[str, VeraPart]] = {}
            for path in site.columns.keys() & group.targets:
                by_pair.setdefault(group.held.bases[path], {})[path] = _vera_part(group, site, path)
            made = [
                (pair, tuple(parts.get(path) for path in site.columns))
                for pair, parts in by_pair.items()
            ]
            self._vera[group, site] = made
        return made

    def lora(self, group: FusedGroup, site: Site) -> tuple[LoraPart, ...]:
        """A part for each linear of the site that is targeted."""
        made = self._lora.get((group, site))
        if made is None:
            made = tuple(
                _lora_part(group, site, path) for path in site.columns if path in group.targets
            )
            self._lora[group, site] = made
        return made


def _vera_part(group: FusedGroup, site: Site, path: str) -> VeraPart:
    columns, at = site.columns[path], group.layout.starts(path)
    return VeraPart(columns.start, columns.stop - columns.start, at["d"], at["b"])


def _lora_part(group: FusedGroup, site: Site, path: str) -> LoraPart:
    columns, at = site.columns[path], group.layout.starts(path)
    width = columns.stop - columns.start
    # Where one of the two is random, its place is never read.
    return LoraPart(columns.start, site.weight.shape[1], width, at.get("A", 0), at.get("B", 0))
