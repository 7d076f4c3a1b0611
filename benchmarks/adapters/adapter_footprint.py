"""The size of an adapter, the time to its slot, and the memory of ten thousand adapters.

`python -m benchmarks.adapters.adapter_footprint` publishes `--registered` adapters, fills
`--resident` slots, then serves requests for random ones while it measures. PEFT does the same with
one adapter at a time.
"""

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from peft import PeftModel, VeraConfig, get_peft_model

from adapters_store.manifest import AdapterRef, Manifest
from benchmarks.support.live import AnswerTimes
from benchmarks.support.report import origin, table, verdict
from benchmarks.support.stack import OWNER, RandomAdapters, Stack, running_stack, settings_for
from server.bases.base_files import load_base
from server.engine.sequence import SamplingParams
from server.scheduler.request import CallbackListener, Generation

Row = tuple[object, ...]

BAR_MS = 5.0  # disk to slot on Porch, median


def resident_memory_mb() -> float:
    """Memory of this process that is not shared with files, MiB."""
    return float(psutil.Process().memory_full_info().uss) / 2**20


def to_slot_ms(stack: Stack, ref: AdapterRef) -> float:
    """From the request for an adapter that is not in memory to its slot, milliseconds."""
    loaded = threading.Event()
    stack.adapters.on_loaded = loaded.set
    start = time.perf_counter()
    stack.adapters.prepare(ref)
    while stack.adapters.acquire(ref) is None:
        loaded.wait(1)
    took = (time.perf_counter() - start) * 1e3
    stack.adapters.release(ref)
    stack.adapters.on_loaded = stack.loop.wake
    return took


def answer_ms(stack: Stack, ref: AdapterRef) -> float:
    """One short answer from an adapter, start to end, milliseconds."""
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    answer = AnswerTimes()
    listener = CallbackListener(answer.hear)
    stack.loop.submit(Generation("bench", OWNER, (1, 2, 3), params, ref), listener)
    return (answer.wait().times[-1] - answer.sent_at) * 1e3


def verandah_rows(options: argparse.Namespace, folder: str) -> tuple[list[Row], RandomAdapters]:
    settings = settings_for(
        folder,
        model=options.model,
        adapter_slots=options.resident,
        adapter_memory_mb=options.memory_mb,
        host_cache_mb=0,
    )
    with running_stack(settings) as stack:
        before = resident_memory_mb()
        adapters = RandomAdapters(stack.base, options.rank)
        start = time.perf_counter()
        refs = adapters.publish(stack.store, options.registered)
        publishing = time.perf_counter() - start
        stored = stack.store.open(refs[0])
        start = time.perf_counter()
        listed = len(stack.store.names(OWNER))
        listing = (time.perf_counter() - start) * 1e3
        registered = resident_memory_mb()
        loads = [to_slot_ms(stack, ref) for ref in refs[: options.resident]]
        full = resident_memory_mb()
        residents = stack.adapters.snapshot()
        evicting = [to_slot_ms(stack, ref) for ref in refs[options.resident :][: options.resident]]
        random.Random(0).shuffle(refs)
        answers = [answer_ms(stack, ref) for ref in refs[: options.answers]]
        rows: list[Row] = [
            ("bytes at rest", stored.size_bytes, ""),
            ("bytes in its slot", residents[0].bytes, ""),
            ("publish, ms (durable)", publishing / len(refs) * 1e3, ""),
            (f"list {listed:,} names, ms", listing, ""),
            ("disk to slot, median ms", statistics.median(loads), bar_text(loads)),
            ("disk to slot, evicting, median ms", statistics.median(evicting), bar_text(evicting)),
            ("disk to slot, p99 ms", statistics.quantiles(loads + evicting, n=100)[98], ""),
            (f"memory for {len(refs):,} registered, MiB", registered - before, ""),
            (f"memory for {len(residents):,} resident, MiB", full - registered, ""),
            ("8 tokens from random adapters, median ms", statistics.median(answers), ""),
            ("evictions while serving", stack.adapters.evictions, ""),
        ]
    return rows, adapters


def bar_text(times_ms: Sequence[float]) -> str:
    return f"bar {BAR_MS:g}: {verdict(statistics.median(times_ms) <= BAR_MS)}"


def peft_rows(options: argparse.Namespace, folder: Path, manifest: Manifest) -> list[Row]:
    """The same adapter in PEFT: its files, loading it, and the memory of `--peft-adapters`."""
    base = load_base(options.model, device="cpu")
    targets = list(manifest.targets)
    config = VeraConfig(r=manifest.rank, target_modules=targets, save_projection=True)
    model: PeftModel = get_peft_model(base.model, config)
    sizes = []
    for save_projection in (True, False):
        config.save_projection = save_projection
        model.save_pretrained(str(folder / str(save_projection)))
        file = folder / str(save_projection) / "adapter_model.safetensors"
        sizes.append(file.stat().st_size)
    config.save_projection = True
    before = resident_memory_mb()
    loads = []
    for number in range(options.peft_adapters):
        start = time.perf_counter()
        model.load_adapter(str(folder / "True"), f"a{number}")
        model.set_adapter(f"a{number}")
        loads.append((time.perf_counter() - start) * 1e3)
    grown = resident_memory_mb() - before
    return [
        ("bytes at rest, with projections (its default)", sizes[0], ""),
        ("bytes at rest, seed only", sizes[1], ""),
        ("load and switch on, first, ms", loads[0], ""),
        ("load and switch on, median ms", statistics.median(loads), ""),
        ("load and switch on, last, ms", loads[-1], ""),
        (f"memory for {options.peft_adapters:,} loaded, MiB", grown, ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="porch", help="base model: porch, a folder or a hub id")
    parser.add_argument("--rank", type=int, default=0, help="0: the trainer's default")
    parser.add_argument("--registered", type=int, default=10_000)
    parser.add_argument("--resident", type=int, default=1_000)
    parser.add_argument("--memory-mb", type=int, default=1024)
    parser.add_argument("--answers", type=int, default=300)
    parser.add_argument("--peft-adapters", type=int, default=100)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        ours, adapters = verandah_rows(options, folder)
        print(origin(), adapters.about(), table(("Verandah", "value", "bar"), ours), sep="\n\n")
        theirs = peft_rows(options, Path(folder), adapters.manifest)
    print("", table(("PEFT", "value", "bar"), theirs), sep="\n")


if __name__ == "__main__":
    main()
