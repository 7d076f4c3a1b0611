"""Time the seeded matrices on one core against their bars: `python -m benchmarks.bases`.

Exits 1 when a median is over its bar.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from server.bases.seeded import STREAM_A, STREAM_B, Basis

# (stream, rows, columns, bar in ms): A and B of a layer of 14336 features at rank 1024.
CASES = ((STREAM_A, 1024, 14_336, 150.0), (STREAM_B, 14_336, 1024, 400.0))
DTYPES = (torch.bfloat16, torch.float32)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


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
    print(f"{processor()}, one core; {platform.system()} {platform.machine()}")
    print(
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"numpy {np.__version__}, commit {commit()}; median of {repeats}\n"
    )
    print(f"{'shape':>14}  {'dtype':<9} {'median ms':>9} {'bar ms':>7}")
    missed = 0
    for stream, rows, columns, bar in CASES:
        for dtype in DTYPES:
            took = median_ms(stream, rows, columns, dtype, repeats)
            missed += took > bar
            name = str(dtype).removeprefix("torch.")
            print(f"{f'{rows} x {columns}':>14}  {name:<9} {took:9.1f} {bar:7.0f}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
