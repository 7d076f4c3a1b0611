"""What can be done to a process of ours from outside: it dies, its disk fills, its clock jumps.

The product knows nothing of this. A process that was just forked wraps the calls by which anything
becomes durable, and counts them: a *change* is one of these calls.
"""

import errno
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file as _save_file
from sqlalchemy import Engine, event

import adapters_store.store
import server.training.job.claimed_job
import server.training.job.publish
import server.training.job.worker_loop
import server.training.run.checkpoint
import server.training.run.run_steps
from server.db import session
from server.jobs.queue.claims import Claims

CHANGES = ("mkdir", "rename", "replace", "fsync", "rmdir", "unlink")
WRITES = ("mkdir", "rename", "replace", "fsync")
"""Those of them that a full disk refuses."""

PHASES: Mapping[str, tuple[Any, str]] = {
    "claim": (Claims, "claim"),
    "validate": (server.training.job.claimed_job, "prepare"),
    "train": (server.training.job.worker_loop, "take_step"),
    "save": (server.training.run.checkpoint, "save_file"),
    "publish": (adapters_store.store.AdapterStore, "publish"),
    "finish": (Claims, "finish"),
}
"""By name, the function that a worker is in."""


class Clock:
    """This machine's clock, which all processes that are forked from here see jump."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)
        self._true = time.time
        self.set(0.0)

    def set(self, ahead_s: float) -> None:
        self._shared[:8] = struct.pack("d", ahead_s)

    def __call__(self) -> float:
        (ahead,) = struct.unpack("d", self._shared[:8])
        return self._true() + float(ahead)


@dataclass(frozen=True)
class Injuries:
    """What a process suffers, by the number of changes that it has begun, or by phase.

    `phase` is a name of `PHASES` with "before" or "after"; `visit` is the how manieth time.
    `full` is when its disk is full.
    """

    die_at: int | None = None
    phase: tuple[str, str] | None = None
    visit: int = 1
    full: range = field(default=range(0))

    def suffer(self, clock: Clock, busy_timeout_ms: int) -> None:
        """From now on, in this process."""
        time.time = clock
        session._PATIENCE_S = busy_timeout_ms / 1000
        count = _Count(self)
        for name in CHANGES:
            setattr(os, name, count.around(getattr(os, name), refusable=name in WRITES))
        save = count.around(_save_file, refusable=True, told=_told_by_rust)
        setattr(server.training.run.checkpoint, "save_file", save)  # noqa: B010
        event.listen(Engine, "commit", lambda _connection: count.begin())
        if self.phase is not None:
            _die_in(self.phase, self.visit)


class _Count:
    def __init__(self, injuries: Injuries) -> None:
        self._injuries = injuries
        self._begun = 0

    def begin(self) -> int:
        """The number of this change; nobody returns from the deadly one."""
        number, self._begun = self._begun, self._begun + 1
        if number == self._injuries.die_at:
            die()
        return number

    def around(
        self,
        call: Callable[..., Any],
        *,
        refusable: bool,
        told: Callable[[OSError], Exception] = lambda error: error,
    ) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if self.begin() in self._injuries.full and refusable:
                raise told(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            return call(*args, **options)

        return counted


def _told_by_rust(error: OSError) -> Exception:
    return SafetensorError(f"Error while serializing: I/O error: {error.strerror} (os error 28)")


def _die_in(phase: tuple[str, str], visit: int) -> None:
    name, when = phase
    holder, attribute = PHASES[name]
    call, visits = getattr(holder, attribute), 0

    def dying(*args: Any, **options: Any) -> Any:
        nonlocal visits
        result = None if when == "before" and visits + 1 == visit else call(*args, **options)
        if name == "claim" and result is None and when == "after":
            return None  # nothing was claimed
        visits += 1
        if visits == visit:
            die()
        return result

    setattr(holder, attribute, dying)


def die() -> None:
    """As by the kernel: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
