"""A worker's surroundings on a tiny model, in this process or, run as a program, in its own.

    python -m tests.training.workplace HOME [MOMENT SIGNAL]

works through HOME's queue until SIGTERM. With a moment ("before-publish", "after-publish", or
"step-5", once that is saved) it sends itself the signal then: who watches it may be slower.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

import server.training.job.worker_loop
from adapters_store.store import AdapterStore
from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.db.session import Database
from server.jobs.files.file_store import Files
from server.jobs.queue.job_queue import JobQueue
from server.training.job.job_phase import JobServices
from server.training.job.worker_loop import WorkerParts, run_worker
from server.training.run.run_steps import take_step
from server.training.run.trainer import Trainer
from tests.db.migrated import migrated
from tests.models import tiny_model
from tests.training.chats import byte_tokenizer

OWNER = "ann"
BASE = "base"


def load_tiny() -> tuple[BaseModel, ChatTokenizer]:
    return BaseModel.of(tiny_model("llama"), "tiny"), byte_tokenizer()


@dataclass(frozen=True)
class Workplace:
    """Everything under one home folder; every process makes its own."""

    home: Path
    database: Database
    queue: JobQueue
    files: Files
    store: AdapterStore

    @classmethod
    def at(cls, home: Path) -> "Workplace":
        database = migrated(f"sqlite:///{home / 'verandah.db'}")
        return cls(
            home,
            database,
            JobQueue(database),
            Files(database, home / "files", max_bytes=2**20),
            AdapterStore(home / "adapters"),
        )

    def parts(self, **changes: Any) -> WorkerParts:
        services: dict[str, Any] = {
            "queue": self.queue,
            "files": self.files,
            "store": self.store,
            "served_name": BASE,
            "folder": self.home / "jobs",
            "lease_s": 1.0,
            "checkpoint_every_s": 0.0,
        }
        known = {field.name for field in fields(JobServices)}
        services |= {name: changes.pop(name) for name in tuple(changes) if name in known}
        values = {"load": load_tiny, "worker_id": f"worker-{os.getpid()}", "poll_s": 0.02}
        return WorkerParts(**{"services": JobServices(**services), **values, **changes})


def lines(count: int) -> bytes:
    """Short chats of uneven length, the same for the same count."""
    chats = [
        [
            {"role": "user", "content": f"Say {i} {'please ' * (i % 4)}"},
            {"role": "assistant", "content": f"{i}, matey{'!' * (i % 7)}"},
        ]
        for i in range(count)
    ]
    return b"".join(json.dumps({"messages": chat}).encode() + b"\n" for chat in chats)


def _hurt(place: Workplace, moment: str, number: int) -> None:
    publish = place.store.publish

    def publish_and_suffer(*args: Any, **options: Any) -> object:
        if moment == "after-publish":
            publish(*args, **options)
        os.kill(os.getpid(), number)
        return publish(*args, **options)

    def suffer_and_step(trainers: Sequence[Trainer], *args: Any) -> object:
        if moment == f"step-{trainers[0].step}":
            os.kill(os.getpid(), number)
        return take_step(trainers, *args)

    if moment.startswith("step-"):
        setattr(server.training.job.worker_loop, "take_step", suffer_and_step)  # noqa: B010
    else:
        place.store.publish = publish_and_suffer  # type: ignore[method-assign, assignment]


def main() -> None:
    torch.set_num_threads(1)
    place = Workplace.at(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        _hurt(place, sys.argv[2], signal.Signals[sys.argv[3]])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    run_worker(place.parts(), stop)


if __name__ == "__main__":
    main()
