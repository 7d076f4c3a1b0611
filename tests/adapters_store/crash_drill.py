"""A program for test_crashes: publishers that race, and publishers that die at their n-th step.

It is a process of its own because it forks, which a process with other threads must not.
Usage: crash_drill.py race ROOT PROCESSES EACH | crash_drill.py kill ROOT publish|delete
"""

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from adapters_store.manifest import Manifest
from adapters_store.store import AdapterStore

MANIFEST = Manifest("vera", 2, 1.0, 7, "spec", "ab", "tiny", "cd", ("q",), 1)
STEPS = ("mkdir", "rename", "replace", "fsync", "rmdir", "unlink")
KILLED = 9


def publish(root: Path, value: float) -> int:
    tensors = {"q.d": torch.full((2,), value), "q.b": torch.full((3,), value)}
    return AdapterStore(root).publish("ann", "poet", MANIFEST, tensors).version


def fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(f"child failed: {error!r}", flush=True)
        os._exit(1)


def join(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(step: int) -> None:
    """From now on, the process ends at once, with no cleanup, before its `step`-th change."""
    left = step

    def watched(call: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(KILLED)
            return call(*args, **options)

        return run

    for name in STEPS:
        setattr(os, name, watched(getattr(os, name)))


def race(root: Path, processes: int, each: int) -> None:
    def work() -> None:
        for value in range(each):
            publish(root, float(value))

    codes = [join(pid) for pid in [fork(work) for _ in range(processes)]]
    print("codes", *codes)


def kill(root: Path, action: str) -> None:
    """Leave one folder for each step: `root/<step>`, as a killed process left it."""
    step, code = 0, KILLED
    while code == KILLED:
        folder = root / str(step)
        if action == "delete":
            publish(folder, 1.0)
            publish(folder, 2.0)
        code = join(fork(partial(doomed, folder, step, action)))
        step += 1
    print("steps", step - 1, "last", code)
    shutil.rmtree(root / str(step - 1))


def doomed(folder: Path, step: int, action: str) -> None:
    if action == "publish":
        store = AdapterStore(folder)
        die_at(step)
        for value in (1.0, 2.0):
            tensors = {"q.d": torch.full((2,), value), "q.b": torch.full((3,), value)}
            store.publish("ann", "poet", MANIFEST, tensors)
        return
    store = AdapterStore(folder)
    die_at(step)
    store.delete("ann", "poet", 2)
    store.delete("ann", "poet")


def main() -> None:
    if sys.argv[1] == "race":
        race(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        kill(Path(sys.argv[2]), sys.argv[3])


if __name__ == "__main__":
    main()
