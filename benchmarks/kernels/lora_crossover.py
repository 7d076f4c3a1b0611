"""From how many tokens a LoRA adapter should get products of its own, not gathered matrices.

`python -m benchmarks.kernels.lora_crossover` times both for the two products of one linear, with
the adapters' tokens scattered over the step as in decoding. Its result is the constant in
`server.adapters.methods.lowrank.by_adapter`.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.support.report import origin, table
from server.adapters.memory.banks import BankRows
from server.adapters.methods.lowrank.by_adapter import ByAdapter
from server.adapters.methods.method import Run

ADAPTERS = (4, 16, 64)
TOKENS = (1, 2, 4, 8, 16, 32)
NEVER = 1 << 30
ENOUGH_S = 0.2  # of timed work a figure

Row = tuple[object, ...]


def best_us(step: Callable[[], object], device: torch.device) -> float:
    """The shortest of several times of one step, microseconds."""
    times: list[float] = []
    deadline = time.perf_counter() + ENOUGH_S
    while len(times) < 4 or time.perf_counter() < deadline:
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


def measured(
    width: int, rank: int, adapters: int, each: int, dtype: torch.dtype, device: torch.device
) -> Row:
    """One line of the table."""
    stored = {
        "A": torch.randn(adapters, rank, width, dtype=dtype, device=device),
        "B": torch.randn(adapters, width, rank, dtype=dtype, device=device),
    }
    picks = [token % adapters for token in range(adapters * each)]
    runs = [Run(row, token, token + 1) for token, row in enumerate(picks)]
    rows = BankRows(stored, torch.tensor(picks, device=device), runs, reuse=False)
    x = torch.randn(adapters * each, width, dtype=dtype, device=device)

    def both(own_from: int) -> float:
        order = ByAdapter(rows.rows, rows.runs, own_from)

        def step() -> Tensor:
            z = order.product(order.sort(x), rows, "A")
            return order.unsort(order.product(z, rows, "B"))

        return best_us(step, device)

    gathered, own = both(NEVER), both(1)
    name = str(dtype).removeprefix("torch.")
    return width, rank, name, adapters, each, gathered, own, own / gathered


def main() -> None:
    has_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if has_cuda else "cpu")
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 2048], help="in = out")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(options.device)
    with torch.inference_mode():
        rows = [
            measured(width, rank, adapters, each, dtype, device)
            for width in options.widths
            for rank in options.ranks
            for dtype in (torch.float32, torch.bfloat16)
            for adapters in ADAPTERS
            for each in TOKENS
            if adapters * each <= 512
        ]
    columns = ("wide", "rank", "dtype", "adapters", "tokens each", "gathered, us", "own, us")
    print(origin(), table((*columns, "own / gathered"), rows), sep="\n\n")


if __name__ == "__main__":
    main()
