"""What each part of `verandah demo` costs, from an empty cache.

    python -m benchmarks.training.demo_cost [--model porch]

CPU seconds are those of the demo, its server, the worker and the installer together.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import psutil

from benchmarks.support.report import origin, table
from server.cli.demo import QUESTIONS

_PARTS = (  # each ends with a line that begins so
    ("fetch the base", "verandah: the base model is "),
    ("convert it and start the server", "A server of "),
    ("train three adapters, and ask them", QUESTIONS[0]),
    ("score the task", "What do "),
    ("tell the sizes", "All in "),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    _, of_demo = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as cache, _demo(cache, of_demo) as demo:
        rows = list(_rows(demo))
    print(origin(), end="\n\n")
    print(table(("part", "CPU s", "s"), rows))


@contextlib.contextmanager
def _demo(cache: str, options: list[str]) -> Iterator[psutil.Popen]:
    demo = psutil.Popen(
        [sys.executable, "-m", "server", "demo", *options],
        env=os.environ | {"XDG_CACHE_HOME": cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with demo:
        yield demo


def _rows(demo: psutil.Popen) -> Iterator[tuple[object, ...]]:
    """A row for each part, printed on the way as well, with the demo's own output."""
    began, used, first = time.monotonic(), 0.0, time.monotonic()
    waiting = list(_PARTS)
    for line in demo.stdout:
        print(line, end="", flush=True)
        found = [name for name, start in waiting if line.startswith(start)]
        if found:
            now, cpu = time.monotonic(), _cpu_seconds(demo)
            yield found[0], cpu - used, now - began
            began, used = now, cpu
            waiting = [part for part in waiting if part[0] != found[0]]
    yield "all", used, time.monotonic() - first


def _cpu_seconds(demo: psutil.Popen) -> float:
    """Of the demo and all that it started, what has ended too."""
    total = 0.0
    for process in (demo, *demo.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


if __name__ == "__main__":
    main()
