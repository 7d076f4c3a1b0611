"""Where the time of one call goes, by operation, as torch's profiler tells it."""

from collections.abc import Callable, Sequence

from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from benchmarks.support.bare_engine import seconds
from benchmarks.support.report import table
from server.bases.model import BaseModel

_SHOWN = 24
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


def profiled(name: str, action: Callable[[], object], base: BaseModel) -> str:
    """A table of what an action's time goes to: on the device if there is one, else on the host."""
    on_device = base.device.type == "cuda"
    for _ in range(3):
        action()
    plain = seconds(action, base.device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_device
    with profile(activities=activities) as run:
        seconds(action, base.device)
    events = list(run.key_averages())

    busy = _rows(events, "self_device_time_total" if on_device else "self_cpu_time_total")
    total = sum(ms for _, _, ms in busy)
    waits, launches = (
        sum(event.count for event in events if event.key in names) for names in (_WAITS, _LAUNCHES)
    )
    summary = (
        f"\n{name}: {1e3 * plain:.1f} ms a step, of which {total:.1f} ms in "
        f"{sum(times for _, times, _ in busy)} operations"
    )
    if not on_device:
        return f"{summary}\n\n{_shown(busy, _SHOWN)}"
    host = _shown(_rows(events, "self_cpu_time_total"), _SHOWN // 2)
    summary += f" on the device ({launches} launches, {waits} waits of the host)"
    return f"{summary}\n\n{_shown(busy, _SHOWN)}\n\nOn the host, slowed by the profiler:\n\n{host}"


_Row = tuple[str, int, float]
"""An operation, how often it ran, and its own milliseconds in all."""


def _rows(events: Sequence[FunctionEventAvg], clock: str) -> list[_Row]:
    """The operations of one side, longest first. A launch and what it launches have one name."""
    on_device = clock == "self_device_time_total"
    rows = [
        (str(event.key), event.count, getattr(event, clock) / 1e3)
        for event in events
        if (event.device_type.name == "CUDA") == on_device and "#" not in str(event.key)
    ]
    return sorted(rows, key=lambda row: -row[2])


def _shown(rows: Sequence[_Row], most: int) -> str:
    total = sum(ms for _, _, ms in rows)
    shown = [
        (name[:72], times, f"{ms:.2f}", f"{100 * ms / total:.1f}")
        for name, times, ms in rows[:most]
    ]
    return table(("operation", "times", "ms", "%"), shown)
