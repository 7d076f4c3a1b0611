"""The cost of the model's own kernels (CUDA): `python -m benchmarks.kernels.model_kernels`.

Each figure is the median of replays of one CUDA graph of many launches. Each launch has inputs of
its own, and the cache was overwritten before: everything comes from memory. In a model the
activations come from the product before, and mostly from cache. 16384 rows are a chunk of prompts.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.support.base_shapes import SHAPES
from benchmarks.support.report import origin, table
from server.engine.kernels.decode_attention import decode_attention
from server.engine.kernels.mlp_gate import gate_mul
from server.engine.kernels.norm import add_rms_norm
from server.engine.kernels.rotary import rotate_and_store

ROWS = (1, 8, 64, 256)
PROMPT_ROWS = 16384
CONTEXTS = (256, 2048)
BANDWIDTH = 4.3e12  # bytes a second, by a copy on one H200
LAUNCHES = 20
REPLAYS = 7
BLOCK_TOKENS = 16
EPS = 1e-5
_MOST_INPUT_BYTES = 2**31
_CACHE_BYTES = 2**28  # more than any level of cache holds

Launch = Callable[[int], object]
Row = tuple[object, ...]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its kernels depend on."""

    name: str
    hidden: int
    width: int
    heads: int
    kv_heads: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Case:
    """One kernel at one size; `launch(i)` runs it on the i-th of its inputs."""

    kernel: str
    rows: int
    context: int | None
    bytes: int
    launch: Launch


def shapes() -> list[Shape]:
    return [
        Shape(
            name,
            SHAPES[name]["hidden_size"],
            SHAPES[name]["intermediate_size"],
            SHAPES[name]["num_attention_heads"],
            SHAPES[name]["num_key_value_heads"],
        )
        for name in ("1b", "8b")
    ]


def inputs(rows: int, width: int) -> Tensor:
    """One for each launch, or fewer where that is too much: [inputs, rows, width]."""
    copies = min(LAUNCHES, max(_MOST_INPUT_BYTES // (rows * width * 2), 1))
    return torch.randn(copies, rows, width, dtype=torch.bfloat16, device="cuda")


def pick(several: Tensor, i: int) -> Tensor:
    return several[i % len(several)]


def norm_case(shape: Shape, rows: int) -> Case:
    h, delta = inputs(rows, shape.hidden), inputs(rows, shape.hidden)
    weight = torch.ones(shape.hidden, dtype=torch.bfloat16, device="cuda")

    def launch(i: int) -> object:
        return add_rms_norm(pick(h, i), pick(delta, i), weight, EPS)

    return Case("add_rms_norm", rows, None, (4 * rows + 1) * shape.hidden * 2, launch)


def gate_case(shape: Shape, rows: int) -> Case:
    gate_up = inputs(rows, 2 * shape.width)

    def launch(i: int) -> object:
        return gate_mul(pick(gate_up, i), shape.width)

    return Case("gate_mul", rows, None, 3 * rows * shape.width * 2, launch)


def rotary_case(shape: Shape, rows: int, memory: Tensor) -> Case:
    widths = [it * shape.head_dim for it in (shape.heads, shape.kv_heads, shape.kv_heads)]
    qkv = inputs(rows, sum(widths))
    turn = torch.rand(rows, shape.head_dim // 2, device="cuda").repeat(1, 2)
    cos, sin = turn.cos().bfloat16(), turn.sin().bfloat16()
    places = torch.randperm(memory.shape[2] * BLOCK_TOKENS, device="cuda")[:rows]

    def launch(i: int) -> None:
        q, k, v = pick(qkv, i).split(widths, dim=1)
        rotate_and_store(q, k, v, cos, sin, memory[0], memory[1], places)

    # q, k and v are read, q and k are written back, k and v are stored; half of each angle is read.
    entries = 2 * (widths[0] + widths[1] + widths[2]) + widths[1] + shape.head_dim
    return Case("rotate_and_store", rows, None, rows * entries * 2, launch)


def attention_case(shape: Shape, rows: int, context: int, memory: Tensor) -> Case:
    q = inputs(rows, shape.hidden)
    width, blocks = context // BLOCK_TOKENS, memory.shape[2]
    # Blocks come again only when each was read once.
    at = torch.arange(LAUNCHES * rows * width, device="cuda") % blocks
    order = torch.randperm(blocks, dtype=torch.int32, device="cuda")
    tables = order[at].view(LAUNCHES, rows, width)
    lens = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    scaling = shape.head_dim**-0.5

    def launch(i: int) -> object:
        return decode_attention(pick(q, i), memory[0], memory[1], tables[i], lens, scaling)

    read = 2 * context * shape.kv_heads * shape.head_dim
    return Case("decode_attention", rows, context, rows * (read + 2 * shape.hidden) * 2, launch)


def cases(shape: Shape) -> Iterator[Case]:
    """All of a shape, one at a time, so that the inputs of each can be freed before the next."""
    blocks = max(ROWS) * max(CONTEXTS) // BLOCK_TOKENS
    memory = torch.randn(
        2, shape.kv_heads, blocks, BLOCK_TOKENS, shape.head_dim, dtype=torch.bfloat16, device="cuda"
    )
    for rows in (*ROWS, PROMPT_ROWS):
        yield norm_case(shape, rows)
    for rows in (*ROWS, PROMPT_ROWS):
        yield rotary_case(shape, rows, memory)
    for rows in (*ROWS, PROMPT_ROWS):
        yield gate_case(shape, rows)
    for context in CONTEXTS:
        for rows in ROWS:
            yield attention_case(shape, rows, context, memory)


def median_us(launch: Launch) -> float:
    """Microseconds of one launch inside a CUDA graph of `LAUNCHES`."""
    launch(0)  # compiles, which a capture may not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(LAUNCHES):
            launch(i)
    dirt = torch.empty(_CACHE_BYTES, dtype=torch.int8, device="cuda")
    graph.replay()
    times: list[float] = []
    for _ in range(REPLAYS):
        dirt.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / LAUNCHES)
    return median(times)


def measured(shape: Shape, case: Case) -> Row:
    """One line of the table."""
    us = median_us(case.launch)
    share = case.bytes / (us * 1e-6) / BANDWIDTH
    context = "" if case.context is None else case.context
    return shape.name, case.kernel, case.rows, context, us, case.bytes / 1e6, f"{share:.0%}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.kernels.model_kernels needs a CUDA device")
    print(origin())
    share = f"of {BANDWIDTH / 1e12} TB/s"
    columns = ("shape", "kernel", "rows", "context", "us", "MB moved", share)
    print(table(columns, [measured(shape, it) for shape in shapes() for it in cases(shape)]))


if __name__ == "__main__":
    main()
