"""What the handlers are given: the parts behind HTTP, each as narrow as its use here.

The parts are named by what they must be able to do, because the real ones import torch, which
nothing under `server.api` does.
"""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from adapters_store.manifest import AdapterRef, Manifest
from server.adapters.inspecting.findings import Findings
from server.api.error_body import ErrorBody
from server.errors import LineProblem
from server.jobs.files.datasets import Dataset
from server.jobs.files.file_store import Files
from server.jobs.queue.job_estimate import JobEstimate
from server.jobs.queue.job_queue import JobQueue
from server.jobs.queue.train_options import TrainOptions
from server.metrics import Metrics
from server.scheduler.intake import Handle
from server.scheduler.request import Generation, Listener, LoopStats
from server.scheduler.stop_strings import Decoder
from server.tenancy.keys import Keys


class Engine(Protocol):
    """`server.scheduler.loop.ServingLoop`."""

    @property
    def alive(self) -> bool: ...

    @property
    def max_context(self) -> int: ...

    @property
    def max_answers(self) -> int: ...

    def submit(self, request: Generation, listener: Listener) -> Handle: ...

    def cancel(self, handle: Handle) -> None: ...

    def stats(self) -> LoopStats: ...


class Tokenizer(Protocol):
    """`server.bases.tokenizer.ChatTokenizer`."""

    def encode(self, text: str, add_special: bool = False) -> list[int]: ...

    def chat(self, messages: Seq[Mapping[str, object]]) -> list[int]: ...

    def stream(self) -> Decoder: ...

    def token_text(self, token_id: int) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class StoredAdapter(Protocol):
    """`adapters_store.store.StoredAdapter`."""

    @property
    def ref(self) -> AdapterRef: ...

    @property
    def manifest(self) -> Manifest: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def sha256(self) -> str: ...


class Adapters(Protocol):
    """`adapters_store.store.AdapterStore`."""

    def resolve(self, owner: str, name: str, version: int | None = None) -> AdapterRef: ...

    def open(self, ref: AdapterRef) -> StoredAdapter: ...

    def names(self, owner: str) -> Seq[str]: ...

    def versions(self, owner: str, name: str) -> Seq[int]: ...

    def aside(self, owner: str, name: str) -> Seq[int]: ...

    def delete(self, owner: str, name: str, version: int | None = None) -> Seq[int]: ...

    def path(self, ref: AdapterRef) -> Path: ...


class Resident(Protocol):
    """One adapter in memory: `server.adapters.residency.Resident`."""

    @property
    def ref(self) -> AdapterRef: ...

    @property
    def slot(self) -> int | None: ...

    @property
    def bytes(self) -> int: ...

    @property
    def in_use(self) -> int: ...

    @property
    def pinned(self) -> bool: ...

    @property
    def state(self) -> str: ...


class Residency(Protocol):
    """`server.adapters.residency.ResidentAdapters`, as other threads may use it."""

    @property
    def slots(self) -> int: ...

    @property
    def loads(self) -> int: ...

    @property
    def evictions(self) -> int: ...

    @property
    def hits(self) -> int: ...

    def snapshot(self) -> Iterable[Resident]: ...

    def pin(self, ref: AdapterRef) -> None: ...

    def unpin(self, ref: AdapterRef) -> None: ...

    def forget(self, ref: AdapterRef) -> None: ...


class Inspection(Protocol):
    """One analysis, under way or done: `server.adapters.inspecting.inspections.Inspection`."""

    @property
    def total(self) -> int: ...

    @property
    def done(self) -> int: ...

    @property
    def findings(self) -> Future[Findings]: ...


class Inspections(Protocol):
    """`server.adapters.inspecting.inspections.Inspections`."""

    def start(self, ref: AdapterRef, other: AdapterRef | None = None) -> Inspection: ...


class Porting(Protocol):
    """`server.adapters.porting.service.PortingService`."""

    def take_in(
        self,
        owner: str,
        name: str,
        config: BinaryIO,
        weights: BinaryIO,
        *,
        file_name: str,
        torch_era: str,
        half_dtype: str,
        base_dtype: str,
    ) -> AdapterRef: ...

    def give_out(self, ref: AdapterRef, form: str) -> Path: ...


class JobEstimator(Protocol):
    """`server.training.job.job_estimator.JobEstimator`."""

    def estimate(
        self,
        train: Dataset,
        valid: Dataset | None,
        options: TrainOptions,
        start: tuple[str, Manifest] | None = None,
    ) -> JobEstimate: ...

    def problems(self, dataset: Dataset, param: str) -> Seq[LineProblem]: ...


class Worker(Protocol):
    """`server.supervisor.Supervisor`."""

    @property
    def alive(self) -> bool: ...

    @property
    def restarts(self) -> int: ...


@dataclass(frozen=True)
class BaseCard:
    """What users see of the base model. `name` is what it is; `id` is how they ask for it."""

    id: str
    name: str
    fingerprint: str
    vocab_size: int
    created_at: int


@dataclass(frozen=True)
class Services:
    """All that the handlers work with, wired by `server.wiring.front`."""

    base: BaseCard
    engine: Engine
    engines: Seq[Worker]  # the processes that run it; none if it is in this one
    tokenizer: Tokenizer
    adapters: Adapters
    residency: Residency
    inspections: Inspections
    porting: Porting
    estimator: JobEstimator
    files: Files
    jobs: JobQueue
    keys: Keys
    metrics: Metrics
    worker: Worker | None
    describe: Callable[[Exception], ErrorBody]
    max_rank: int
    request_timeout_s: float
    max_body_bytes: int
    max_file_bytes: int
