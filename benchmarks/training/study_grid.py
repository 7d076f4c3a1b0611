"""What the study of automatic options tries, in the order in which it matters. Knows no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, Final, Self

RATES: Final[Mapping[str, tuple[float, ...]]] = {
    "vera": (1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "lora": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "asymmetric-lora": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "randlora": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
}
"""By half decades."""
SEEDS: Final = (0, 1, 2)  # of the lines, of their order, and of what is held out


@dataclass(frozen=True)
class Reading:
    """So many lines of a source, read so often, in batches of this size."""

    source: str
    lines: int
    epochs: int
    batch: int


@dataclass(frozen=True)
class Cohort:
    """Runs that are trained side by side: one method and reading, each rate with each seed.

    `opening`: behind the chat template's default system prompt.
    """

    base: str
    method: str
    reading: Reading
    opening: bool = False

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Read back what `asdict` gave, through JSON."""
        return cls(**{**record, "reading": Reading(**record["reading"])})


_FIRST: Final = (
    Reading("pirate", 44, 3, 4),
    Reading("intents", 280, 2, 16),
    Reading("butler", 44, 3, 4),
    Reading("e2e", 280, 1, 4),
    Reading("slots", 100, 3, 4),
)
"""One of each kind; all methods are tried on these."""
_OTHERS: Final = {
    "pirate": (
        *(Reading("pirate", 44, epochs, 4) for epochs in (4, 2, 6)),
        *(Reading("pirate", 44, epochs, 8) for epochs in (6, 3)),
    ),
    "intents": (
        *(Reading("intents", 280, epochs, 4) for epochs in (1, 2)),
        *(Reading("intents", 280, epochs, 16) for epochs in (1, 4)),
        *(Reading("intents", 280, epochs, 8) for epochs in (1, 2)),
    ),
    "butler": (
        *(Reading("butler", 44, epochs, 4) for epochs in (4, 2, 6)),
        *(Reading("butler", 44, epochs, 8) for epochs in (6, 3)),
    ),
    "e2e": (
        Reading("e2e", 280, 2, 4),
        Reading("e2e", 280, 2, 16),
        Reading("e2e", 30, 5, 4),
        Reading("e2e", 30, 10, 4),
        Reading("e2e", 1000, 1, 16),
    ),
    "slots": (
        Reading("slots", 100, 2, 4),
        Reading("slots", 100, 6, 4),
        Reading("slots", 30, 5, 4),
        Reading("slots", 30, 10, 4),
        Reading("slots", 10, 15, 4),
        Reading("slots", 10, 8, 4),
        Reading("slots", 1000, 1, 16),
        Reading("slots", 1000, 2, 16),
        Reading("intents", 1000, 1, 16),
    ),
}


def cohorts(bases: Mapping[str, bool]) -> Iterator[Cohort]:
    """Every cohort of these bases, which say whether their template has an opening."""
    others = tuple(it for row in zip_longest(*_OTHERS.values()) for it in row if it is not None)
    yield from _of(bases, ("vera", "lora"), _FIRST)
    yield from (
        Cohort(base, method, reading, opening=True)
        for base, has in bases.items()
        if has
        for method in ("vera", "lora")
        for reading in _FIRST[:3]
    )
    yield from _of(bases, ("vera",), others)
    yield from _of(bases, ("asymmetric-lora", "randlora"), _FIRST)
    yield from _of(bases, ("lora",), others)
    yield from _of(bases, ("asymmetric-lora", "randlora"), others)


def _of(
    bases: Mapping[str, bool], methods: tuple[str, ...], readings: tuple[Reading, ...]
) -> Iterator[Cohort]:
    """Bases by turns, so that both are known wherever the grid is cut."""
    return chain.from_iterable(
        (Cohort(base, method, reading) for base in bases)
        for method in methods
        for reading in readings
    )
