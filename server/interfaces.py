"""The services that several parts of the server share, as protocols. Imports no torch.

Each stands for a class that imports torch, or for several classes; its docstring names them.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from pathlib import Path
from typing import BinaryIO, Protocol

from adapters_store.manifest import AdapterRef, Manifest, StoredAdapter
from server.adapters.adapter_status import AdapterStatus
from server.adapters.inspecting.findings import Findings
from server.errors import LineProblem
from server.jobs.files.datasets import Dataset
from server.jobs.files.rendered_example import RenderedExample
from server.jobs.queue.job_estimate import JobEstimate
from server.jobs.queue.train_options import TrainOptions
from server.scheduler.intake import Handle
from server.scheduler.request import Generation, Listener, LoopStats
from server.scheduler.stop_strings import Decoder


class Engine(Protocol):
    """`server.scheduler.loop.ServingLoop`, or `server.replicas.fleet.Fleet`."""

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

    def prompt(self, text: str) -> list[int]: ...

    def without_default_prompt(self) -> "Tokenizer": ...

    def chat(
        self,
        messages: Seq[Mapping[str, object]],
        add_generation_prompt: bool = True,
        tools: Seq[Mapping[str, object]] | None = None,
        *,
        continues: bool = False,
        settings: Mapping[str, object] | None = None,
    ) -> list[int]: ...

    def reads(self, name: str) -> bool: ...

    def pieces(self, text: str) -> list[str] | None: ...

    def stream(self, *, skip_special: bool = True) -> Decoder: ...

    def token_text(self, token_id: int) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class Adapters(Protocol):
    """`adapters_store.store.AdapterStore`."""

    def resolve(self, owner: str, name: str, version: int | None = None) -> AdapterRef: ...

    def open(self, ref: AdapterRef) -> StoredAdapter: ...

    def owners(self) -> Seq[str]: ...

    def names(self, owner: str) -> Seq[str]: ...

    def sizes(self, owner: str) -> Mapping[str, int]: ...

    def versions(self, owner: str, name: str) -> Seq[int]: ...

    def aside(self, owner: str, name: str) -> Seq[int]: ...

    def delete(self, owner: str, name: str, version: int | None = None) -> Seq[int]: ...

    def path(self, ref: AdapterRef) -> Path: ...


class Residency(Protocol):
    """`server.adapters.residency.ResidentAdapters`, as other threads may use it, or
    `server.replicas.fleet_residency.FleetResidency`.
    """

    @property
    def slots(self) -> int: ...

    @property
    def loads(self) -> int: ...

    @property
    def evictions(self) -> int: ...

    @property
    def hits(self) -> int: ...

    def snapshot(self) -> list[AdapterStatus]: ...

    def pin(self, ref: AdapterRef) -> None: ...

    def unpin(self, ref: AdapterRef) -> None: ...

    def forget(self, ref: AdapterRef) -> None: ...


class Inspection(Protocol):
    """One analysis, running or done: `server.adapters.inspecting.inspections.Inspection`."""

    @property
    def total(self) -> int: ...

    @property
    def done(self) -> int: ...

    @property
    def findings(self) -> Future[Findings]: ...


class Inspections(Protocol):
    """`server.adapters.inspecting.inspections.Inspections`."""

    def start(self, ref: AdapterRef, other: AdapterRef | None = None) -> Inspection: ...

    def known(self, sha256: str) -> bool: ...


class Porting(Protocol):
    """`server.adapters.porting.service.PortingService`."""

    def import_adapter(
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

    def copy_adapter(self, ref: AdapterRef, owner: str, name: str) -> AdapterRef: ...

    def export_adapter(self, ref: AdapterRef, form: str, *, owner: str | None = None) -> Path: ...

    def release(self, folder: Path) -> None: ...


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

    def renderer(
        self, start: tuple[str, Manifest] | None = None
    ) -> Callable[[Mapping[str, object]], Seq[RenderedExample]]: ...


class Worker(Protocol):
    """What keeps something running and counts how often it was started again:
    `server.supervisor.Supervisor`, `server.replicas.replica.Replica` and others.
    """

    @property
    def alive(self) -> bool: ...

    @property
    def restarts(self) -> int: ...

    @property
    def problem(self) -> str:
        """What is wrong, in words; empty if nothing is."""
        ...
