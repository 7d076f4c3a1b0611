"""Time the seeded matrices on one core: `python -m benchmarks.kernels.basis_speed`.

Exits 1 when a median is over its limit.
"""

import argparse
import statistics
import sys
import time

import torch

from benchmarks.support.report import origin, table
from server.bases.seeded_matrices import STREAM_A, STREAM_B, Basis

# (stream, rows, columns, bar in ms): A and B of a layer of 14336 features at rank 1024.
CASES = ((STREAM_A, 1024, 14_336, 150.0), (STREAM_B, 14_336, 1024, 400.0))
DTYPES = (torch.bfloat16, torch.float32)


def median_ms(stream: int, rows: int, columns: int, dtype: torch.dtype, repeats: int) -> float:
    """Median wall time of one tile in milliseconds, after one run to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        Basis(0).tile(stream, range(rows), range(columns), dtype)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="timed runs per line")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    rows = []
    for stream, height, width, bar in CASES:
        for dtype in DTYPES:
            took = median_ms(stream, height, width, dtype, repeats)
            name = str(dtype).removeprefix("torch.")
            rows.append(
                (f"{height} x {width}", name, took, bar, "met" if took <= bar else "MISSED")
            )
    print(origin(), table(("shape", "dtype", "median ms", "bar ms", "bar"), rows), sep="\n\n")
    return int(any(row[-1] == "MISSED" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
