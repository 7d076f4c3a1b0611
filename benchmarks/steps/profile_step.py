"""Where the time of a decode step goes, by what kernels do, and the gaps.

    python -m benchmarks.steps.profile_step --shape 8b --device cuda
    python -m benchmarks.steps.profile_step --shape tiny --rows 2 --steps 2

torch's profiler adds up the device's work in some steps (on a CPU: torch's operations). A step's
length is measured without the profiler. The gaps are that length minus all kernels: the device
waits for the host, or a kernel waits for the one before it.
"""

import argparse
import re
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from torch.profiler import ProfilerActivity, profile

from adapters_store.store import AdapterStore
from benchmarks.support import crowd
from benchmarks.support.bare_engine import BareEngine
from benchmarks.support.base_shapes import SHAPES, base_of
from benchmarks.support.crowd import ASYMMETRIC, LORA, RANDLORA, VERA, VERA_QV, Kind
from benchmarks.support.report import origin, table

KINDS: Final[Mapping[str, Kind | None]] = {
    "base": None,
    "vera-qv": VERA_QV,
    "vera": VERA,
    "lora": LORA,
    "asymmetric-lora": ASYMMETRIC,
    "randlora": RANDLORA,
}
# The first that a kernel's name has; a kernel that does two things counts as the first of them.
GROUPS: Final = {
    "adapters": r"vera|lora|^_shrink|^_expand",
    "attention": r"attention|attend|^_join|flash|fmha",
    "norm": r"norm|rsqrt|mean",
    "rotary and storing": r"rotary|rotate|rope|index_copy|nan_to_num",
    "gate": r"silu|gate",
    "sampling": r"argmax|sample|softmax|sort|topk|philox|uniform|distribution|multinomial|cumsum",
    "products": r"gemm|gemv|nvjet|cutlass|cublas|splitk|xmma|::mm|addmm|::bmm|matmul|linear",
    "copies": r"memcpy|memset|copy|fill|clamp|cat|embedding|index|gather",
}
SHOWN: Final = 14  # kernels told of by name


class Spent(NamedTuple):
    """Milliseconds of a step in kernels of one name, and how many there are."""

    ms: float
    calls: float


def group_of(name: str) -> str:
    groups = (group for group, pattern in GROUPS.items() if re.search(pattern, name, re.IGNORECASE))
    return next(groups, "other")


def profiled(engine: BareEngine, slots: list[int], context: int, steps: int) -> dict[str, Spent]:
    """What kernels of each name take in one step."""
    on_device = engine.base.device.type == "cuda"
    kind = ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU
    sequences = engine.sequences(slots, context, steps + 1)
    with profile(activities=[kind]) as trace:
        engine.decode_s(sequences, steps)
    spent: dict[str, list[float]] = {}
    for event in trace.events():
        if on_device and event.device_type.name != "CUDA":
            continue
        took = event.time_range.elapsed_us() if on_device else event.self_cpu_time_total
        spent.setdefault(event.name, []).append(took / 1e3)
    ms = {name: Spent(sum(took) / steps, len(took) / steps) for name, took in spent.items()}
    return dict(sorted(ms.items(), key=lambda pair: -pair[1].ms))


def measure(options: argparse.Namespace, folder: Path) -> None:
    base, kind = base_of(options.shape, options.device), KINDS[options.adapters]
    store = AdapterStore(folder)
    adapter_kind = kind or VERA
    refs = crowd.publish(store, base, adapter_kind, options.rows)
    adapters = crowd.residents(base, store, [(adapter_kind, options.rows)])
    context = options.context + max(options.steps, 20) + 1
    engine = BareEngine.of(base, adapters, rows=options.rows, context=context, plain=options.plain)
    slots = [0] * options.rows if kind is None else crowd.acquire(adapters, refs)
    times = []
    for _ in range(4):
        sequences = engine.sequences(slots, options.context, 20)
        times.append(engine.decode_s(sequences, 20) * 1e3)
    step_ms = statistics.median(times[1:])
    kernels = profiled(engine, slots, options.context, options.steps)
    adapters.close()
    print(origin())
    print(
        f"\n{options.shape}, {base.dtype}, {options.rows} rows, {options.context} tokens of "
        f"context, {options.adapters}, all distinct\n"
    )
    print(table(("", "ms a step", "share", "kernels a step"), lines_of(kernels, step_ms)))
    named = [
        (name[:60].replace("|", "/"), group_of(name), it.ms, it.calls)
        for name, it in list(kernels.items())[:SHOWN]
    ]
    print("", table(("kernel", "counted as", "ms a step", "a step"), named), sep="\n")


def lines_of(kernels: Mapping[str, Spent], step_ms: float) -> list[tuple[object, ...]]:
    """A line for each group, the gaps and the whole."""
    groups: dict[str, list[Spent]] = {}
    for name, it in kernels.items():
        groups.setdefault(group_of(name), []).append(it)
    total = _sum(list(kernels.values()))
    sums = {group: _sum(spent) for group, spent in groups.items()}
    rows: list[tuple[object, ...]] = [
        (group, it.ms, f"{it.ms / step_ms:.1%}", it.calls)
        for group, it in sorted(sums.items(), key=lambda pair: -pair[1].ms)
    ]
    gaps = step_ms - total.ms
    rows.append(("gaps", gaps, f"{gaps / step_ms:.1%}", ""))
    return [*rows, ("a step", step_ms, "100.0%", total.calls)]


def _sum(kernels: list[Spent]) -> Spent:
    return Spent(sum(it.ms for it in kernels), sum(it.calls for it in kernels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--adapters", choices=KINDS, default="vera")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="profiled")
    parser.add_argument("--plain", action="store_true", help="without kernels and graphs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=crowd.scratch()) as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
