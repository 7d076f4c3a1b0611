"""What a start of `verandah serve` costs, and what an idle server takes.

    python -m benchmarks.host.start [--starts 5] [options of serve]

CPU seconds of all its processes until /ready answers 200, then their memory when nothing has
happened for a while. The median of several starts, each with a home of its own.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

import httpx
import psutil

from benchmarks.support.report import origin, table

_SETTLED_S = 12.0
_MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5)
    options, of_serve = parser.parse_known_args()
    rows = [start_once(of_serve) for _ in range(options.starts)]
    print(origin(), end="\n\n")
    columns = ("CPU s", "s", f"CPU s, {_SETTLED_S:g} s later", "PSS MiB", "RSS MiB", "processes")
    print(table(columns, [[statistics.median(values) for values in zip(*rows, strict=True)]]))


def start_once(options: list[str]) -> tuple[float, ...]:
    """The figures of one start, in the order of the columns."""
    with tempfile.TemporaryDirectory() as home:
        began = time.monotonic()
        server = psutil.Popen(
            [
                sys.executable,
                "-m",
                "server",
                "serve",
                "--home",
                home,
                "--port",
                "0",
                "--model",
                "porch",
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            address = server.stdout.readline().split()[-1]  # printed when it listens
            while httpx.get(f"{address}/ready").status_code != 200:
                time.sleep(0.01)
            used, passed = _cpu_seconds(server), time.monotonic() - began
            time.sleep(_SETTLED_S)
            memory = [process.memory_full_info() for process in _processes(server)]
            pss, rss = (sum(getattr(of, kind) for of in memory) / _MIB for kind in ("pss", "rss"))
            return used, passed, _cpu_seconds(server), pss, rss, len(memory)
        finally:
            server.terminate()
            server.communicate()


def _processes(server: psutil.Popen) -> list[psutil.Process]:
    return [server, *server.children(recursive=True)]


def _cpu_seconds(server: psutil.Popen) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _processes(server))


if __name__ == "__main__":
    main()
