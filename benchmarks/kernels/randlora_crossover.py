"""How to serve RandLoRA: gathered vectors, a scaled A for each run, or a dense update per adapter.

`python -m benchmarks.kernels.randlora_crossover` times the three on single linears, and prints from
how many tokens a run each is the fastest (decision 8).
`server.adapters.methods.randlora.randlora_serving` uses the result. "Times dense" is the
better of the first two over the third, which takes as much memory for each adapter as the linear.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.support.report import origin, table
from server.adapters.memory.banks import BankRows
from server.adapters.methods.method import BasisPair, Run
from server.adapters.methods.randlora.randlora import RandLora
from server.adapters.methods.randlora.randlora_frozen import Frozen
from server.adapters.methods.randlora.randlora_serving import ServedDelta, Span
from server.bases.model import TargetLinear
from server.bases.seeded_matrices import Basis

# [in, out] of the distinct linears.
SHAPES = {
    "porch": ((384, 384), (384, 128), (384, 1024), (1024, 384)),
    "1b": ((2048, 2048), (2048, 8192), (8192, 2048)),
    "8b": ((4096, 4096), (4096, 14_336), (14_336, 4096)),
}
TOKENS = (1, 4, 8, 16, 32, 64, 128, 512)
ADAPTERS = (1, 8, 64)
ENOUGH_S = 0.1  # of timed work a figure, in so many rounds
ROUNDS = 5
METHOD = RandLora()

Step = Callable[[], object]


@dataclass(frozen=True)
class Place:
    """The device and dtype, and how many bytes are sure to empty the cache."""

    device: torch.device
    dtype: torch.dtype
    cache_bytes: int
    max_tokens: int

    @classmethod
    def named(cls, device: str) -> "Place":
        if device == "cuda":
            return cls(torch.device(device), torch.bfloat16, 1 << 28, 4096)
        return cls(torch.device(device), torch.float32, 1 << 26, 512)


def microseconds(variants: Sequence[Sequence[Step]], device: torch.device) -> list[float]:
    """One step of each variant, the best of some rounds.

    Steps of a variant take turns, so that none profits from the cache. So do the variants, so that
    other work on the machine affects all of them.
    """
    rounds = []
    for steps in variants:
        _timed(steps, 1, device)
        rounds.append(max(1, round(ENOUGH_S / ROUNDS / _timed(steps, 1, device))))
    best = [math.inf] * len(variants)
    for _ in range(ROUNDS):
        for i, steps in enumerate(variants):
            took = _timed(steps, rounds[i], device) / rounds[i] / len(steps)
            best[i] = min(best[i], took)
    return [seconds * 1e6 for seconds in best]


def _timed(steps: Sequence[Step], rounds: int, device: torch.device) -> float:
    _settle(device)
    start = time.perf_counter()
    for _ in range(rounds):
        for step in steps:
            step()
    _settle(device)
    return time.perf_counter() - start


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Linear:
    """One linear with adapters, served by each variant."""

    def __init__(self, shape: tuple[int, int], rank: int, adapters: int, place: Place) -> None:
        self.target = TargetLinear("x", nn.Identity(), *shape)
        self.rank, self.adapters, self.place = rank, adapters, place
        size, basis = METHOD.basis_size(self.target, rank), Basis(0)
        a = basis.a(size.a_rank, min(shape), place.dtype, place.device)
        b = basis.b(max(shape), size.b_rank, place.dtype, place.device)
        pair = BasisPair(a, b.t().contiguous())
        self.frozen = Frozen.of(self.target, rank, pair, by_rank=False)
        # Layers share B and have all else to themselves: enough of them to overflow the cache.
        layer_bytes = adapters * shape[0] * shape[1] * place.dtype.itemsize
        self.layers = max(1, math.ceil(place.cache_bytes / layer_bytes))
        self.vectors = [self._drawn(METHOD.shapes(self.target, rank)) for _ in range(self.layers)]
        weight_bytes = shape[0] * shape[1] * place.dtype.itemsize
        self.weights = [
            self._random(shape[1], shape[0]) for _ in range(-(-place.cache_bytes // weight_bytes))
        ]
        self.dense = [
            self._random(adapters, *shape).mul_(shape[0] ** -0.5) for _ in range(self.layers)
        ]

    def times(self, tokens_each: int) -> list[float]:
        """Microseconds: of the frozen linear, then of its delta gathered, whole and dense."""
        tokens = tokens_each * self.adapters
        x, y = (self._random(tokens, n) for n in self._features())
        runs = [Run(i, i * tokens_each, (i + 1) * tokens_each) for i in range(self.adapters)]
        of_token = torch.arange(self.adapters, device=self.place.device)
        rows = of_token.repeat_interleave(tokens_each)

        def served(spans: Sequence[Span]) -> list[Step]:
            deltas = [
                ServedDelta(self.frozen, BankRows(vectors, rows, runs, reuse=False), spans)
                for vectors in self.vectors
            ]
            return [partial(delta, x, x, y) for delta in deltas]

        by_adapter = [t.view(self.adapters, tokens_each, -1) for t in (x, y)]
        variants = (
            [partial(functional.linear, x, weight) for weight in self.weights],
            served([Span(None, 0, tokens)]),
            served([Span(*run) for run in runs]),
            [partial(by_adapter[1].baddbmm_, by_adapter[0], update) for update in self.dense],
        )
        return microseconds(variants, self.place.device)

    def _features(self) -> tuple[int, int]:
        return self.target.in_features, self.target.out_features

    def _drawn(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        return {
            name: self._random(self.adapters, *shape).mul_(0.01) for name, shape in shapes.items()
        }

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.place.dtype, device=self.place.device)


def serving_rows(
    shape: tuple[int, int],
    rank: int,
    place: Place,
    adapter_counts: Sequence[int],
    tokens: Sequence[int],
) -> Iterator[tuple[object, ...]]:
    """A line for each number of adapters and of tokens a run."""
    for adapters in adapter_counts:
        linear = Linear(shape, rank, adapters, place)
        for each in tokens:
            if each * adapters > place.max_tokens:
                continue
            plain, gathered, whole, dense = linear.times(each)
            better = "gathered" if gathered < whole else "whole"
            name = f"{shape[0]} -> {shape[1]}"
            ratio = min(gathered, whole) / dense
            yield name, rank, adapters, each, plain, gathered, whole, dense, better, ratio


def crossovers(rows: Sequence[Sequence[object]]) -> list[tuple[object, ...]]:
    """From how many tokens a run on a scaled A is the faster of the two, for good."""
    from_tokens: dict[tuple[object, ...], object] = {}
    for shape, rank, adapters, each, _, gathered, whole, *_ in rows:
        assert isinstance(gathered, float) and isinstance(whole, float)
        key = (shape, rank, adapters)
        if gathered <= whole:
            from_tokens[key] = "more"
        elif from_tokens.setdefault(key, each) == "more":
            from_tokens[key] = each
    return [(*key, tokens) for key, tokens in from_tokens.items()]


def main() -> None:
    has_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if has_cuda else "cpu")
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, default=list(SHAPES) if has_cuda else ["porch"]
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[32])
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="of one run")
    parser.add_argument("--adapters", type=int, nargs="+", default=list(ADAPTERS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    place = Place.named(options.device)
    print(origin())
    with torch.inference_mode():
        rows = [
            row
            for name in options.shapes
            for shape in SHAPES[name]
            for rank in options.ranks
            for row in serving_rows(shape, rank, place, options.adapters, options.tokens)
        ]
    columns = ("linear", "rank", "adapters", "tokens each", "linear, us", "gathered, us")
    more = ("whole, us", "dense, us", "better", "times dense")
    print("", table((*columns, *more), rows), sep="\n")
    crossed = ("linear", "rank", "adapters", "whole wins from, tokens each")
    print("", table(crossed, crossovers(rows)), sep="\n")


if __name__ == "__main__":
    main()
