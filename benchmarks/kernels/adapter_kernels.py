"""The adapters' kernels in a layer (CUDA): `python -m benchmarks.kernels.adapter_kernels`.

By default it prints a short table of the 8b shape at 64 rows, in some 20 seconds; with `--all`
every shape and number of rows, in a minute. As in `benchmarks.kernels.model_kernels`, every launch
has its own inputs, and the cache is empty beforehand. Only VeRA's random matrix is shared by all,
as by the layers of a model. `gate_vera` and the expansion of gate and up include the work of
`gate_mul`, whose own cost is in the table too. `--tiles` times other sizes of VeRA's programs at so
many rows of up to 64 adapters, in microseconds a launch.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import torch
from torch import Tensor

from benchmarks.kernels.model_kernels import (
    BANDWIDTH,
    LAUNCHES,
    Launch,
    Row,
    Shape,
    median_us,
    shapes,
)
from benchmarks.support.report import origin, table
from server.adapters.kernels.lora_expand import LoraPart, expand
from server.adapters.kernels.lora_gate import expand_gate
from server.adapters.kernels.lora_shrink import shrink
from server.adapters.kernels.segments import Segments, capacity_for
from server.adapters.kernels.vera_gate import gate_vera
from server.adapters.kernels.vera_product_kernel import Tiles, VeraPart, add_vera, tiles_for
from server.adapters.memory.layouts import PAGE
from server.engine.kernels.mlp_gate import gate_mul

ROWS = (1, 8, 64, 256)
VERA_RANK, LORA_RANK = 256, 16
_BYTES = 2
# What a layer is longer by than the base's own: kernels, and which of them stand in for another.
SUMS = {
    "VeRA, in all": {"add_vera, 3 sites": 1, "gate_vera": 1, "gate_mul": -1},
    "LoRA, in all": {"shrink, 4 sites": 1, "expand, 4 sites": 1, "gate_mul": -1},
}
_OTHER_TILES = [
    Tiles(64, 64, 64, warps=4, stages=3),
    *(
        Tiles(rows, columns, VERA_RANK, warps=warps, stages=1)
        for rows, columns, warps in product((32, 64, 128), (64, 128), (8, 16))
        if warps == 8 or rows * columns > 4096
    ),
]


@dataclass(frozen=True)
class Site:
    """Linears that read the same input."""

    name: str
    width: int
    outs: tuple[int, ...]

    @property
    def columns(self) -> tuple[int, ...]:
        return (0, *accumulate(self.outs[:-1]))

    @property
    def out(self) -> int:
        return sum(self.outs)


@dataclass(frozen=True)
class Crowd:
    """A batch: rows of `adapters` adapters, in turn."""

    rows: int
    adapters: int

    def pages(self, each: int) -> list[int]:
        """Where rows of `each` pages begin, behind the base's."""
        return [each * (1 + row % self.adapters) for row in range(self.rows)]


@dataclass(frozen=True)
class Case:
    """One kernel at all sites that it serves; `launch(i)` runs the i-th layer."""

    kernel: str
    crowd: Crowd
    bytes: int
    launch: Launch


def sites(shape: Shape) -> list[Site]:
    """A layer's, in the order they run."""
    kv = shape.kv_heads * shape.head_dim
    return [
        Site("qkv", shape.hidden, (shape.hidden, kv, kv)),
        Site("o", shape.hidden, (shape.hidden,)),
        Site("gate_up", shape.hidden, (shape.width, shape.width)),
        Site("down", shape.width, (shape.hidden,)),
    ]


def filled(*size: int) -> Tensor:
    return torch.empty(*size, dtype=torch.bfloat16, device="cuda").normal_(std=0.1)


class Bank:
    """Rows for a crowd: one layer's vectors after another's."""

    def __init__(self) -> None:
        self.width = 0

    def place(self, entries: int) -> int:
        start = self.width
        self.width += -(-entries // 16) * 16
        return start

    def memory(self, crowd: Crowd) -> tuple[Tensor, list[int]]:
        each = -(-self.width // PAGE)
        return filled((crowd.adapters + 1) * each * PAGE), crowd.pages(each)


class Vera:
    """VeRA's kernels for a crowd, at one site of `LAUNCHES` layers."""

    def __init__(self, site: Site, crowd: Crowd) -> None:
        bank = Bank()
        self.parts = [
            [
                VeraPart(column, out, bank.place(VERA_RANK), bank.place(out))
                for column, out in zip(site.columns, site.outs, strict=True)
            ]
            for _ in range(LAUNCHES)
        ]
        self.site = site
        self.memory, pages = bank.memory(crowd)
        self.pages = torch.tensor(pages, device="cuda")
        self.y = filled(LAUNCHES, crowd.rows, site.out + VERA_RANK)
        self.bt = filled(VERA_RANK, max(site.outs))
        vectors = crowd.adapters * (site.out + len(site.outs) * VERA_RANK)
        moved = 2 * site.out if site.name != "gate_up" else site.out * 3 // 2
        self.bytes = (vectors + crowd.rows * (moved + VERA_RANK)) * _BYTES

    def launch(self, i: int, tiles: Tiles | None = None) -> None:
        y, z = self.y[i].split([self.site.out, VERA_RANK], dim=1)
        inputs = (y, z, self.bt, self.memory, self.pages)
        if self.site.name == "gate_up":
            gate, up = self.parts[i]
            gate_vera(*inputs, gate, up, self.site.outs[0], VERA_RANK, tiles)
        else:
            add_vera(*inputs, self.parts[i], VERA_RANK, tiles)


class Lora:
    """LoRA's kernels for a crowd, at one site of `LAUNCHES` layers."""

    def __init__(self, site: Site, crowd: Crowd) -> None:
        bank = Bank()
        self.parts = [
            [
                LoraPart(
                    column, site.width, out,
                    bank.place(LORA_RANK * site.width), bank.place(out * LORA_RANK),
                )
                for column, out in zip(site.columns, site.outs, strict=True)
            ]
            for _ in range(LAUNCHES)
        ]  # fmt: skip
        self.site = site
        self.memory, pages = bank.memory(crowd)
        self.pages = torch.tensor(pages, device="cuda")
        # As many as a captured step has room for, whoever asks.
        self.segments = Segments.of(pages, capacity_for(crowd.rows, crowd.rows), "cuda")
        self.x = filled(LAUNCHES, crowd.rows, site.width)
        self.y = filled(LAUNCHES, crowd.rows, site.out)
        s = shrink(self.x[0], self.memory, self.segments, self.parts[0], LORA_RANK)
        self.s = torch.ones((LAUNCHES, *s.shape), device="cuda")
        read = crowd.adapters * LORA_RANK * _BYTES
        s_bytes = s.numel() * s.itemsize
        self.shrink_bytes = read * len(site.outs) * site.width + s_bytes + self.x[0].nbytes
        moved = self.y[0].nbytes * (2 if site.name != "gate_up" else 3 / 2)
        self.expand_bytes = int(read * site.out + s_bytes + moved)

    def shrink(self, i: int) -> None:
        shrink(self.x[i], self.memory, self.segments, self.parts[i], LORA_RANK)

    def expand(self, i: int) -> None:
        inputs = (self.y[i], self.s[i], self.memory, self.segments)
        if self.site.name == "gate_up":
            gate, up = self.parts[i]
            expand_gate(*inputs, self.pages, gate, up, self.site.outs[0], LORA_RANK)
        else:
            expand(*inputs, self.parts[i], LORA_RANK)


def in_turn(launches: Sequence[Launch]) -> Launch:
    def launch(i: int) -> None:
        for one in launches:
            one(i)

    return launch


def cases(shape: Shape, crowd: Crowd) -> Iterator[Case]:
    """All of a shape, one at a time, so that the inputs of each can be freed before the next."""
    qkv, o, gate_up, down = sites(shape)
    adds = [Vera(site, crowd) for site in (qkv, o, down)]
    added = sum(it.bytes for it in adds)
    yield Case("add_vera, 3 sites", crowd, added, in_turn([it.launch for it in adds]))
    gate = Vera(gate_up, crowd)
    yield Case("gate_vera", crowd, gate.bytes, gate.launch)
    plain = 3 * crowd.rows * shape.width * _BYTES
    yield Case("gate_mul", crowd, plain, lambda i: gate_mul(gate.y[i], shape.width))
    loras = [Lora(site, crowd) for site in (qkv, o, gate_up, down)]
    shrunk = sum(it.shrink_bytes for it in loras)
    yield Case("shrink, 4 sites", crowd, shrunk, in_turn([it.shrink for it in loras]))
    expanded = sum(it.expand_bytes for it in loras)
    yield Case("expand, 4 sites", crowd, expanded, in_turn([it.expand for it in loras]))


def measured(shape: Shape, case: Case) -> Row:
    """One line of the table."""
    us = median_us(case.launch)
    share = case.bytes / (us * 1e-6) / BANDWIDTH
    crowd = case.crowd
    return shape.name, case.kernel, crowd.rows, crowd.adapters, us, case.bytes / 1e6, f"{share:.0%}"


def print_layers() -> None:
    crowds = [Crowd(rows, adapters) for rows in ROWS for adapters in sorted({1, rows})]
    share = f"of {BANDWIDTH / 1e12} TB/s"
    columns = ("shape", "kernel", "rows", "adapters", "us a layer", "MB moved", share)
    lines = [
        measured(shape, case)
        for shape in shapes()
        for crowd in crowds
        for case in cases(shape, crowd)
    ]
    print(table(columns, lines))


def print_short(shape: Shape) -> None:
    """Each kernel's microseconds a layer, all rows distinct and all alike, and their sums."""
    crowds = [Crowd(64, 64), Crowd(64, 1)]
    us = [{it.kernel: median_us(it.launch) for it in cases(shape, crowd)} for crowd in crowds]
    lines: list[Row] = [(kernel, *(of[kernel] for of in us)) for kernel in us[0]]
    for name, own in SUMS.items():
        lines.append((name, *(sum(of[it] * sign for it, sign in own.items()) for of in us)))
    print(table((f"{shape.name}, 64 rows: us a layer", "64 adapters", "1 adapter"), lines))


def print_tiles(shape: Shape, rows: int) -> None:
    """Every size of program at two sites, the one that `tiles_for` chooses first."""
    crowd = Crowd(rows, min(rows, 64))
    qkv, _, gate_up, _ = sites(shape)
    for site in (qkv, gate_up):
        vera = Vera(site, crowd)
        gates = site.name == "gate_up"
        chosen = tiles_for(crowd.rows, site.out, VERA_RANK, products=2 if gates else 1)
        lines = [
            (shape.name, site.name, rows, *tiles, us)
            for tiles in [chosen, *(it for it in _OTHER_TILES if it != chosen)]
            if (us := tiled_us(vera, tiles)) is not None
        ]
        lines[1:] = sorted(lines[1:], key=lambda line: line[-1])[:8]
        print(table(("shape", "site", "rows", *Tiles._fields, "us"), lines), flush=True)


def tiled_us(vera: Vera, tiles: Tiles) -> float | None:
    """None if a multiprocessor cannot hold a program of that size."""
    try:
        return median_us(lambda i: vera.launch(i, tiles))
    except Exception as error:  # triton's OutOfResources, which has moved between its versions
        if "out of resource" not in str(error):
            raise
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="all shapes and numbers of rows")
    parser.add_argument("--shape", choices=("1b", "8b"), default="8b")
    parser.add_argument(
        "--tiles", type=int, nargs="+", help="rows for which to try other sizes of VeRA's programs"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.kernels.adapter_kernels needs a CUDA device")
    print(origin())
    [shape] = (it for it in shapes() if it.name == options.shape)
    if options.all:
        print_layers()
    elif options.tiles is None:
        print_short(shape)
    for rows in options.tiles or ():
        print_tiles(shape, rows)


if __name__ == "__main__":
    main()
