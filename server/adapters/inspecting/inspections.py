"""Analyses adapters on a thread of its own, one at a time, and keeps the findings by content.

Knows no slots and no engine: it reads the store and the base's weights, on one core.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Final

import torch
from torch import nn

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from server.adapters.inspecting.analysis import analyse
from server.adapters.inspecting.findings import Findings
from server.adapters.loading.checks import AdapterChecks
from server.adapters.memory.matrices import BasisSource
from server.adapters.methods.checked_adapter import CheckedAdapter
from server.bases.model import BaseModel, TargetLinear
from server.errors import QueueFull, Unavailable

MAX_INSPECTIONS: Final = 64  # findings of hundreds of linears take about half a megabyte
MAX_WAITING: Final = 16
_RETRY_AFTER_S: Final = 5.0
_CLOSING_S: Final = 5.0
_STOPPING: Final = "the server is stopping and analyses no adapter: try again when it runs again"

_Key = tuple[str, str]


class Inspection:
    """One analysis, running or finished: `done` of `total` linears are analysed.

    `findings` ends with InvalidAdapter or a StoreError if an adapter is not fit for the base, and
    with Unavailable if the server stops.
    """

    def __init__(self, ref: AdapterRef, other: AdapterRef | None, total: int) -> None:
        self.ref = ref
        self.other = other
        self.total = total
        self.done = 0
        self.findings: Future[Findings] = Future()


class Inspections:
    """Thread-safe; starts its thread. Close it.

    Args:
        weights: reads the base's weights where `base` is only an outline. Called once, at the first
            analysis; what it gives is not kept.
    """

    def __init__(
        self,
        base: BaseModel,
        store: AdapterStore,
        max_rank: int,
        weights: Callable[[], nn.Module] | None = None,
    ) -> None:
        self._base = base
        self._store = store
        self._checks = AdapterChecks(base, BasisSource(base, store.imported_bases), max_rank)
        self._weights = weights
        self._weight_norms: dict[str, float] = {}
        self._lock = threading.Lock()
        self._inspections: OrderedDict[_Key, Inspection] = OrderedDict()
        self._waiting: SimpleQueue[tuple[_Key, Inspection] | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread = self._started()

    def start(self, ref: AdapterRef, other: AdapterRef | None = None) -> Inspection:
        """Analyse `ref`, and compare it with `other` if given. Equal content is analysed once.

        Reads two headers from the disk.

        Raises:
            AdapterNotFound, AdapterCorrupt: from the headers.
            QueueFull: too many wait.
            Unavailable: closed.
        """
        header = self._store.open(ref)
        key = (header.sha256, "" if other is None else self._store.open(other).sha256)
        with self._lock:
            if self._closing.is_set():
                raise Unavailable(_STOPPING)
            inspection = self._inspections.get(key)
            if inspection is None:
                self._limit()
                inspection = self._inspections[key] = Inspection(
                    ref, other, len(header.manifest.targets)
                )
                self._waiting.put((key, inspection))
            self._inspections.move_to_end(key)
            return inspection

    def known(self, sha256: str) -> bool:
        """Whether there are findings already about an adapter of this content, by itself."""
        with self._lock:
            inspection = self._inspections.get((sha256, ""))
            return inspection is not None and inspection.findings.done()

    def close(self) -> None:
        """Fail the analyses that wait. The running one ends after its linear.

        This waits for it, but a few seconds at most.
        """
        with self._lock:
            self._closing.set()
        self._waiting.put(None)
        self._thread.join(_CLOSING_S)

    def _limit(self) -> None:
        """For one more. Needs the lock."""
        waiting = sum(not inspection.findings.done() for inspection in self._inspections.values())
        if waiting >= MAX_WAITING:
            raise QueueFull(
                f"{waiting} analyses are waiting already: send the request again later",
                retry_after_s=_RETRY_AFTER_S,
            )
        finished = [
            key for key, inspection in self._inspections.items() if inspection.findings.done()
        ]
        for key in finished[: len(self._inspections) - MAX_INSPECTIONS + 1]:
            del self._inspections[key]

    def _started(self) -> threading.Thread:
        """The thread, limited to one core for all its products.

        torch keeps the number per thread, but hands the last one set to threads that begin later:
        so it is set back once this one has taken its own.
        """
        before, started = torch.get_num_threads(), threading.Event()

        def work() -> None:
            torch.set_num_threads(1)
            torch.get_num_threads()  # the first look is when a thread takes its number
            started.set()
            while (job := self._waiting.get()) is not None:
                self._run(*job)

        thread = threading.Thread(target=work, name="inspections", daemon=True)
        thread.start()
        started.wait()
        torch.set_num_threads(before)
        return thread

    def _run(self, key: _Key, inspection: Inspection) -> None:
        try:
            findings = self._findings(inspection)
        # Any error goes to those who wait for the analysis. It is not kept: it may be temporary.
        except Exception as error:
            with self._lock:
                del self._inspections[key]
            inspection.findings.set_exception(error)
        else:
            inspection.findings.set_result(findings)

    @torch.inference_mode()
    def _findings(self, inspection: Inspection) -> Findings:
        def advance() -> None:
            inspection.done += 1
            self._stop_if_closing()

        self._stop_if_closing()
        other = inspection.other
        return analyse(
            self._read(inspection.ref),
            None if other is None else self._read(other),
            self._weight_norm,
            advance,
        )

    def _stop_if_closing(self) -> None:
        if self._closing.is_set():
            raise Unavailable(_STOPPING)

    def _read(self, ref: AdapterRef) -> CheckedAdapter:
        return self._checks.checked(self._store.read(ref))

    def _weight_norm(self, linear: TargetLinear) -> float:
        norms, path = self._weight_norms, linear.path
        if path not in norms and self._weights is not None:
            model = self._weights()
            norms.update({each: _norm(model.get_submodule(each)) for each in self._base.targets})
        elif path not in norms:
            norms[path] = _norm(linear.module)
        return norms[path]


def _norm(linear: nn.Module) -> float:
    weight = linear.get_parameter("weight")
    return float(torch.linalg.vector_norm(weight, dtype=torch.float64))
