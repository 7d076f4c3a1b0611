"""Runs side by side: processes that each hold a GPU's share, and one that hands out the work.

What to do next is decided anew after every outcome, so that one command may go through stages that
depend on each other, and may be cut and called again: what its files hold is not done twice.
"""

import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

Run = TypeVar("Run")  # what is to be done: a value, hashable
Outcome = TypeVar("Outcome")  # what came of it


@dataclass(frozen=True)
class Pool(Generic[Run, Outcome]):
    """How many processes, on how many GPUs (0: the CPU), and until when runs are begun.

    `make_work` is called once in each process, with its device.
    """

    processes: int
    gpus: int
    begin_until: float  # seconds of `time.monotonic()`
    stop_at: float
    make_work: Callable[[str], Callable[[Run], Outcome]]


@dataclass
class _Worker(Generic[Run]):
    process: BaseProcess
    pipe: Connection
    run: Run | None = None


def run_all(
    pool: Pool[Run, Outcome],
    runs: Callable[[Mapping[Run, Outcome]], Sequence[Run]],
    done: dict[Run, Outcome],
    note: Callable[[Outcome], None],
) -> dict[Run, str]:
    """Work off what `runs` gives, in its order, until nothing is left or time is up.

    `done` grows; `note` is called with each outcome. Returns the runs that failed, and how.
    """
    workers: list[_Worker[Run]] = [_start(pool, index) for index in range(pool.processes)]
    failed: dict[Run, str] = {}
    try:
        while time.monotonic() < pool.stop_at:
            if time.monotonic() < pool.begin_until:
                _hand_out(workers, runs(done), {*done, *failed})
            busy = [worker.pipe for worker in workers if worker.run is not None]
            if not busy:
                break
            for pipe in connection.wait(busy, timeout=1):
                worker = next(worker for worker in workers if worker.pipe is pipe)
                _collect(worker, done, failed, note)
            workers = [worker for worker in workers if not worker.pipe.closed]
    finally:
        for worker in workers:
            worker.process.terminate()
    return failed


def _hand_out(workers: Sequence[_Worker[Run]], runs: Sequence[Run], begun: set[Run]) -> None:
    begun |= {worker.run for worker in workers if worker.run is not None}
    free = [worker for worker in workers if worker.run is None]
    new = [run for run in dict.fromkeys(runs) if run not in begun]
    for worker, run in zip(free, new, strict=False):
        worker.run = run
        worker.pipe.send(run)


def _collect(
    worker: _Worker[Run],
    done: dict[Run, Outcome],
    failed: dict[Run, str],
    note: Callable[[Outcome], None],
) -> None:
    """Note what a worker sends; one whose process died has its pipe closed."""
    run = worker.run
    assert run is not None
    worker.run = None
    try:
        answer: Outcome | str = worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        worker.pipe.close()
        answer = f"its process ended with status {worker.process.exitcode}"
    if isinstance(answer, str):
        failed[run] = answer
        print(f"FAILED {run}: {answer.strip().splitlines()[-1]}", flush=True)
        return
    done[run] = answer
    note(answer)


def _start(pool: Pool[Run, Outcome], index: int) -> _Worker[Run]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    gpu = index % pool.gpus if pool.gpus else None
    process = context.Process(target=_serve, args=(theirs, pool.make_work, gpu), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _serve(
    pipe: Connection, make_work: Callable[[str], Callable[[Run], Outcome]], gpu: int | None
) -> None:
    """One process: take a run, send back its outcome, or the traceback of what it raised."""
    if gpu is not None:  # torch reads it when it first looks for a GPU, which is below
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[gpu] if visible else str(gpu)
    work = make_work("cpu" if gpu is None else "cuda")
    while True:
        try:
            run = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            pipe.send(work(run))
        except Exception:
            pipe.send(traceback.format_exc())
