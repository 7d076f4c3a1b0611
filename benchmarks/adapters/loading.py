"""The CPU time to bring an adapter from its file to a packed row.

    python -m benchmarks.adapters.loading --shape 8b

The base is an outline without weights, and files are read from memory where the system allows it.
Times are CPU time of the loading thread, so a busy machine disturbs them little.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from benchmarks.support import crowd
from benchmarks.support.base_shapes import SHAPES
from benchmarks.support.crowd import Kind
from benchmarks.support.report import origin, table
from server.adapters.loading.checks import AdapterChecks
from server.adapters.loading.packing import RowPackers
from server.adapters.memory.layouts import Layouts
from server.adapters.memory.matrices import BasisSource
from server.bases.model import BaseModel

KINDS: Final = (crowd.VERA, Kind("vera", 64), crowd.VERA_QV, crowd.RANDLORA, crowd.LORA)

Row = tuple[object, ...]


def outline(shape: str) -> BaseModel:
    """A Llama of one of `SHAPES` on torch's meta device, served in bfloat16."""
    config = AutoConfig.for_model(**SHAPES[shape])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return BaseModel.of(model, shape, fingerprint=shape)


def cpu_ms(work: Callable[[], object], repeats: int) -> float:
    """Median CPU time of this thread, milliseconds; the first run is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.thread_time()
        work()
        times.append((time.thread_time() - start) * 1e3)
    return statistics.median(times[1:])


def rows(base: BaseModel, store: AdapterStore, repeats: int) -> Iterator[Row]:
    checks = AdapterChecks(base, BasisSource(base, store.imported_bases), crowd.MAX_RANK)
    kinds = RowPackers(base, Layouts(base, crowd.MAX_RANK))

    def load(ref: AdapterRef, *, plainly: bool = False) -> None:
        content = store.read(ref)
        kind = kinds.of(checks.check(content), content.header.manifest, content.table)
        (kind.pack_plainly if plainly else kind.pack)(content)

    for each in KINDS:
        (ref,) = crowd.publish(store, base, each, 1)
        data = store.path(ref).read_bytes()
        yield (
            each.label,
            len(data) / 1e6,
            cpu_ms(partial(load, ref), repeats),
            cpu_ms(partial(load, ref, plainly=True), repeats),
            cpu_ms(partial(store.read, ref), repeats),
            cpu_ms(partial(hashlib.sha256, data), repeats),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = outline(options.shape)
    with tempfile.TemporaryDirectory(dir=crowd.scratch()) as folder:
        lines = list(rows(base, AdapterStore(Path(folder)), options.repeats))
    columns = ("adapter", "file, MB", "to a row", "vector by vector", "read", "hash alone")
    print(origin(), f"{options.shape}, CPU ms:", table(columns, lines), sep="\n\n")


if __name__ == "__main__":
    main()
