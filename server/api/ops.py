"""/health, /ready and /metrics, for operators. They need no API key."""

from collections import Counter
from collections.abc import Iterator, Mapping

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.api.app_services import CurrentServices, Services
from server.errors import Unavailable
from server.metrics import PREFIX, UndescribedCollector

router = APIRouter(tags=["operations"])


@router.get("/health")
async def health(services: CurrentServices) -> dict[str, object]:
    """Whether this process and the engines' processes, if there are any, are alive."""
    if not services.engines:
        return {"status": "ok"}
    engines = [{"alive": each.alive, "restarts": each.restarts} for each in services.engines]
    good = all(each.alive for each in services.engines)
    return {"status": "ok" if good else "degraded", "engines": engines}


@router.get("/ready")
def ready(services: CurrentServices) -> JSONResponse:
    """Whether a request would be answered now: 200, or 503 with what is missing."""
    checks = {"engine": services.engine.alive, "database": _database_answers(services)}
    good = all(checks.values())
    return JSONResponse(
        {"status": "ready" if good else "not ready", "checks": checks, "model": services.base.id},
        200 if good else 503,
    )


@router.get("/metrics")
def metrics(services: CurrentServices) -> Response:
    """Prometheus's text format."""
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)


class ServerGauges(UndescribedCollector):
    """Gauges that are read from their owners at each scrape: queues, memory, adapters, jobs."""

    def __init__(self, services: Services) -> None:
        self._services = services

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
        states = Counter(str(resident.state) for resident in residents)
        yield self._by("adapters_in_memory", "Adapters in memory, by state.", "state", states)
        pinned = sum(resident.pinned for resident in residents)
        yield self._gauge("adapters_pinned", "Adapters that are never evicted.", pinned)
        yield self._gauge("adapter_slots", "Largest number of adapters in slots.", residency.slots)
        yield self._counter("adapter_loads", "Adapters read from the store.", residency.loads)
        yield self._counter(
            "adapter_evictions", "Adapters evicted from slots.", residency.evictions
        )
        yield self._counter("adapter_hits", "Requests whose adapter had a slot.", residency.hits)

    def _training(self) -> Iterator[Metric]:
        jobs = {str(status): count for status, count in self._services.jobs.counts().items()}
        yield self._by("training_jobs", "Training jobs, by status.", "status", jobs)
        worker = self._services.worker
        if worker is not None:
            yield self._gauge("training_worker_up", "1 while the worker runs.", worker.alive)
            yield self._counter(
                "training_worker_restarts", "Restarts of the worker.", worker.restarts
            )


def _database_answers(services: Services) -> bool:
    try:
        services.jobs.counts()
    except Unavailable:
        return False
    return True
