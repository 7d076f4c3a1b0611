"""Where the time of one call goes, by operation, as torch's profiler tells it."""

import time
from collections.abc import Callable

import torch
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import table
from server.bases.model import BaseModel

_SHOWN = 24
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


def profiled(name: str, action: Callable[[], object], base: BaseModel) -> str:
    """A table of what an action's time goes to: on the device if there is one, else on the host."""
    on_device = base.device.type == "cuda"
    for _ in range(3):
        action()
    plain = _seconds(action, on_device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_device
    with profile(activities=activities) as run:
        _seconds(action, on_device)
    events = list(run.key_averages())

    def mine(event: FunctionEventAvg) -> float:
        return float(event.self_device_time_total if on_device else event.self_cpu_time_total)

    counted = [e for e in events if mine(e) and (e.device_type.name == "CUDA") == on_device]
    busy = sum(mine(event) for event in counted)
    rows = [
        (event.key[:72], event.count, f"{mine(event) / 1e3:.2f}", f"{100 * mine(event) / busy:.1f}")
        for event in sorted(counted, key=mine, reverse=True)[:_SHOWN]
    ]
    waits, launches = (
        sum(event.count for event in events if event.key in names) for names in (_WAITS, _LAUNCHES)
    )
    told = (
        f"\n{name}: {1e3 * plain:.1f} ms a step, of which {busy / 1e3:.1f} ms in "
        f"{sum(event.count for event in counted)} operations"
    )
    if on_device:
        told += f" on the device ({launches} launches, {waits} waits of the host)"
    return f"{told}\n\n{table(('operation', 'times', 'ms', '%'), rows)}"


def _seconds(action: Callable[[], object], on_device: bool) -> float:
    if on_device:
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if on_device:
        torch.cuda.synchronize()
    return time.perf_counter() - start
