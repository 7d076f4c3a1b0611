"""/health, /ready and /metrics, for operators. They need no API key, but /metrics names owners and
adapters to the server's admin alone."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Final, Generic, TypeVar, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from adapters_store.store_errors import StoreError
from server.adapters.adapter_status import AdapterState
from server.api.app_services import Services
from server.api.reference.answer_model import AnswerModel, Responses, answers, raw
from server.api.reference.operation_answers import Health, Ready
from server.errors import Unavailable
from server.interfaces import Adapters, Worker
from server.jobs.queue.job import JobStatus
from server.metrics import PREFIX, UndescribedCollector
from server.tenancy.usage.trained_tokens import TrainedTokens
from server.tenancy.usage.usage_counts import UsageCounts

router = APIRouter(tags=["operations"])

_PATIENCE_S: Final = 0.6
_METRICS_S: Final = 0.9
_RECOUNT_S: Final = 60.0
_COUNTS_S: Final = 0.25  # of the disk, and of the database twice, as parts of the metrics
_NO_ANSWER: Final[dict[str, object]] = {
    "alive": False,
    "problem": "the worker's state could not be read in time",
}

T = TypeVar("T")
D = TypeVar("D")


class Operations:
    """What the endpoints ask. Each answers within a second, whatever hangs."""

    def __init__(self, services: Services) -> None:
        self.services = services
        worker = services.worker
        self.worker = None if worker is None else SharedCall(partial(_told, worker))
        self.counts = SharedCall(services.jobs.counts)
        self.metrics = SharedCall(partial(generate_latest, services.metrics.registry))
        self.stored = StoredCount(services.adapters)
        services.metrics.registry.register(ServerGauges(services, self.counts, self.stored))
        ProcessCollector(registry=services.metrics.registry)
        names = CollectorRegistry()
        names.register(BusyCounters(services.usage))
        self.names = SharedCall(partial(generate_latest, names))

    async def health(self) -> dict[str, object]:
        """The document of /health."""
        if problem := self.services.problem():
            return {"status": "failed", "problem": problem}
        told: dict[str, object] = {}
        states = [_told(each) for each in self.services.engines]
        if states:
            told["engines"] = [*states]
        if self.worker is not None:
            worker = await self.worker.within(_PATIENCE_S, _NO_ANSWER)
            states.append(worker)
            told["worker"] = worker
        good = all(state["alive"] for state in states)
        return {"status": "ok" if good else "degraded", **told}

    async def readiness(self) -> dict[str, object]:
        """The document of /ready."""
        counts = await self.counts.within(_PATIENCE_S, None)
        checks = {"engine": self.services.engine.alive, "database": counts is not None}
        status = "ready" if all(checks.values()) else "not ready"
        return {"status": status, "checks": checks, "model": self.services.base.id}


def _also_503(model: type[AnswerModel]) -> Responses:
    """The same document is the answer when all is well and when it is not."""
    told = answers(model)
    return told | {503: {**told[200], "description": "The same, when it is not."}}


def operations_of(request: Request) -> Operations:
    """What answers for the application that got a request."""
    return cast(Operations, request.app.state.operations)


@router.get("/health", responses=_also_503(Health))
async def health(request: Request) -> JSONResponse:
    """Whether this process, the engines' processes and the training worker are alive and make
    progress. 503: this process does not, and is about to end."""
    told = await operations_of(request).health()
    return JSONResponse(told, 503 if told["status"] == "failed" else 200)


@router.get("/ready", responses=_also_503(Ready))
async def ready(request: Request) -> JSONResponse:
    """Whether a request would be answered now: 200, or 503 with what is missing."""
    told = await operations_of(request).readiness()
    return JSONResponse(told, 200 if told["status"] == "ready" else 503)


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=raw(CONTENT_TYPE_LATEST.partition(";")[0], "The figures.", fails=(401,), text=True),
)
async def metrics(request: Request) -> Response:
    """Prometheus's text format. With the key of the server's admin, or if the server needs no key,
    also the busiest owners and adapters by name."""
    operations = operations_of(request)
    text = await operations.metrics.within(_METRICS_S, None)
    names = await operations.names.within(_METRICS_S, None) if await _may_name(request) else b""
    if text is None or names is None:
        raise Unavailable("the metrics could not be read in time: try again")
    text += names
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _may_name(request: Request) -> bool:
    """Whether the server's admin asks. Raises Unauthorized for a key that is wrong."""
    services, header = operations_of(request).services, request.headers.get("authorization")
    if header is None and services.keys.needed:
        return False
    return (await services.keys.principal(header, services.threads.keys.run)).server_admin


def _told(one: Worker) -> dict[str, object]:
    problem = one.problem
    told: dict[str, object] = {"alive": one.alive, "restarts": one.restarts}
    return told | {"problem": problem} if problem else told


class SharedCall(Generic[T]):
    """A call that may hang: one thread at most makes it, and all who ask meanwhile share it."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._running: Future[T] | None = None

    def start(self) -> "Future[T]":
        """Call, unless a call is under way; its result."""
        with self._lock:
            if self._running is None or self._running.done():
                self._running = Future()
                run = partial(self._run, self._running)
                threading.Thread(target=run, name="operations", daemon=True).start()
            return self._running

    async def within(self, seconds: float, default: D) -> T | D:
        """The result, or `default` if it comes too late, or the server could not give it."""
        result = asyncio.wrap_future(self.start())
        await asyncio.wait([result], timeout=seconds)
        if not result.done():
            # Asked for, or asyncio writes a trace of an error that comes late to the log.
            result.add_done_callback(asyncio.Future.exception)
            return default
        return default if isinstance(result.exception(), Unavailable) else result.result()

    def _run(self, result: "Future[T]") -> None:
        result.set_running_or_notify_cancel()
        try:
            result.set_result(self._call())
        except Exception as error:
            result.set_exception(error)


class BusyCounters(UndescribedCollector):
    """The counters of the busiest, up to this moment."""

    def __init__(self, usage: UsageCounts) -> None:
        self._usage = usage

    def collect(self) -> Iterator[Metric]:
        self._usage.collect()
        yield from self._usage.busy.collect()


class StoredCount:
    """How many adapters all owners have. To count them takes a look at every folder: now and then,
    and apart. Until a count is done, or while the disk is gone, it is the last one."""

    def __init__(self, adapters: Adapters) -> None:
        self._count = SharedCall(
            lambda: sum(len(adapters.names(owner)) for owner in adapters.owners())
        )
        self._counting: Future[int] = Future()
        self._last, self._count_after = 0, 0.0

    def read(self) -> int:
        if time.monotonic() >= self._count_after:
            self._count_after = time.monotonic() + _RECOUNT_S
            self._counting = self._count.start()
        with suppress(OSError, StoreError, TimeoutError):
            self._last = self._counting.result(_COUNTS_S)
        return self._last


class ServerGauges(UndescribedCollector):
    """Gauges that are read from their owners at each scrape: queues, memory, adapters, jobs."""

    def __init__(
        self, services: Services, counts: SharedCall[dict[JobStatus, int]], stored: StoredCount
    ) -> None:
        self._services = services
        self._counts = counts
        self._stored = stored
        self._trained = SharedCall(TrainedTokens(services.tenants.usage).count)

    def collect(self) -> Iterator[Metric]:
        yield from self._engine()
        yield from self._residency()
        yield from self._training()

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
        family.add_metric([self._services.base.id], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(PREFIX + name, text, labels=["model_name"])
        family.add_metric([self._services.base.id], value)
        return family

    def _by(self, name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=["model_name", label])
        for key, value in values.items():
            family.add_metric([self._services.base.id, key], value)
        return family

    def _engine(self) -> Iterator[Metric]:
        stats = self._services.engine.stats()
        yield self._gauge("num_requests_running", "Answers that are running.", stats.running)
        yield self._gauge("num_requests_waiting", "Answers that are waiting.", stats.waiting)
        used = stats.kv_blocks_used / max(stats.kv_blocks_total, 1)
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", used)
        adapters = len([name for name in stats.by_adapter_running if "@" in name])
        yield self._gauge("num_adapters_running", "Adapters with an answer running.", adapters)

    def _residency(self) -> Iterator[Metric]:
        residency = self._services.residency
        residents = list(residency.snapshot())
        states = Counter({str(state): 0 for state in AdapterState})
        states.update(str(resident.state) for resident in residents)
        yield self._by("adapters_in_memory", "Adapters in memory, by state.", "state", states)
        stored = self._stored.read()
        yield self._gauge("adapters_stored", "Adapters on the disk, of all owners.", stored)
        pinned = sum(resident.pinned for resident in residents)
        yield self._gauge("adapters_pinned", "Adapters that are never evicted.", pinned)
        yield self._gauge("adapter_slots", "Largest number of adapters in slots.", residency.slots)
        yield self._counter("adapter_loads", "Adapters read from the store.", residency.loads)
        yield self._counter(
            "adapter_evictions", "Adapters evicted from slots.", residency.evictions
        )
        yield self._counter("adapter_hits", "Requests whose adapter had a slot.", residency.hits)

    def _training(self) -> Iterator[Metric]:
        answers = False
        with suppress(Unavailable, TimeoutError):  # without a database they are left out
            counts = self._counts.start().result(_COUNTS_S)
            jobs = {str(status): count for status, count in counts.items()}
            trained = self._trained.start().result(_COUNTS_S)
            answers = True
            yield self._by("training_jobs", "Training jobs, by status.", "status", jobs)
            yield self._counter("training_tokens", "Tokens that jobs have trained on.", trained)
        yield self._gauge("database_up", "1 while the database answers.", answers)
        worker = self._services.worker
        if worker is not None:
            yield self._gauge("training_worker_up", "1 while the worker runs.", worker.alive)
            yield self._counter(
                "training_worker_restarts", "Restarts of the worker.", worker.restarts
            )
