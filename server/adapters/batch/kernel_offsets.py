"""Where kernels find each linear of a site: its columns in the product, its entries in a row."""

from dataclasses import dataclass
from typing import Final

from server.adapters.batch.fused_plan import FusedGroup
from server.adapters.batch.group_cache import GroupCache
from server.adapters.batch.sites import Site
from server.adapters.kernels.lora_expand import LoraPart
from server.adapters.kernels.vera_product_kernel import VeraPart
from server.adapters.methods.method import BasisPair

VeraParts = list[tuple[BasisPair, tuple[VeraPart | None, ...]]]

MOST: Final = 1 << 14
"""Offsets kept for each family of kernels: an 8B Llama has 128 sites."""


@dataclass(eq=False)
class KernelOffsets:
    """Offsets by group and site. Each is worked out once, since steps mostly repeat."""

    _vera: GroupCache[VeraParts]
    _lora: GroupCache[tuple[LoraPart, ...]]

    def vera(self, group: FusedGroup, site: Site) -> VeraParts:
        """For each pair that linears of the site read: a part for each linear, None if it has none.

        There is one pair, unless each layer has a basis of its own.
        """
        parts = self._vera.get((group,), site)
        if parts is None:
            by_pair: dict[BasisPair, dict[str, VeraPart]] = {}
            for path in site.columns.keys() & group.targets:
                pair = group.loaded.pairs[path]
                by_pair.setdefault(pair, {})[path] = _vera_part(group, site, path)
            parts = [
                (pair, tuple(of_pair.get(path) for path in site.columns))
                for pair, of_pair in by_pair.items()
            ]
            self._vera.put((group,), site, parts)
        return parts

    def lora(self, group: FusedGroup, site: Site) -> tuple[LoraPart, ...]:
        """A part for each linear of the site that is targeted."""
        parts = self._lora.get((group,), site)
        if parts is None:
            parts = tuple(
                _lora_part(group, site, path) for path in site.columns if path in group.targets
            )
            self._lora.put((group,), site, parts)
        return parts


def _vera_part(group: FusedGroup, site: Site, path: str) -> VeraPart:
    columns, at = site.columns[path], group.layout.starts(path)
    return VeraPart(columns.start, columns.stop - columns.start, at["d"], at["b"])


def _lora_part(group: FusedGroup, site: Site, path: str) -> LoraPart:
    columns, at = site.columns[path], group.layout.starts(path)
    width = columns.stop - columns.start
    # Where one of the two is random, its place is never read.
    return LoraPart(columns.start, site.weight.shape[1], width, at.get("A", 0), at.get("B", 0))
