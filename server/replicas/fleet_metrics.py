"""Adds the metrics of engine processes to those of this process. Knows no HTTP."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.samples import Sample

from server.metrics import PREFIX, Metrics, UndescribedCollector
from server.replicas.fleet import Fleet

_Key = tuple[str, tuple[tuple[str, str], ...]]


class SummedMetrics(UndescribedCollector):
    """Sums each series over `sources`, without the times of creation. For one thread at a time.

    A source that ends takes what it counted with it. Sums that count never go back all the same:
    Prometheus would take what the other sources have counted for new.
    """

    def __init__(self, sources: Callable[[], Iterable[Iterable[Metric]]]) -> None:
        self._sources = sources
        self._last: dict[_Key, float] = {}
        self._gone: dict[_Key, float] = {}  # what sources that ended had counted

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        sums: dict[str, dict[_Key, float]] = {}
        for source in self._sources():
            for family in source:
                families.setdefault(family.name, family)
                series = sums.setdefault(family.name, {})
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        key = (sample.name, tuple(sample.labels.items()))
                        series[key] = series.get(key, 0.0) + sample.value
        for name, family in families.items():
            summed = Metric(name, family.documentation, family.type)
            counts = family.type in ("counter", "histogram")
            summed.samples = [
                Sample(key[0], dict(key[1]), self._with_gone(key, value) if counts else value)
                for key, value in sums[name].items()
            ]
            yield summed

    def _with_gone(self, key: _Key, value: float) -> float:
        gone = self._gone.get(key, 0.0)
        last = self._last.get(key, 0.0)
        if value + gone < last:
            gone = self._gone[key] = last - value
        self._last[key] = value + gone
        return value + gone


class FleetGauges(UndescribedCollector):
    """Whether each replica runs, how many answers it has, and its restarts."""

    def __init__(self, fleet: Fleet, model_name: str) -> None:
        self._fleet = fleet
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        labels = ["model_name", "replica"]
        up = GaugeMetricFamily(PREFIX + "replica_up", "1 while the engine runs.", labels=labels)
        queued = GaugeMetricFamily(
            PREFIX + "replica_requests", "Answers that run or wait there.", labels=labels
        )
        restarts = CounterMetricFamily(
            PREFIX + "replica_restarts", "Times its process was started again.", labels=labels
        )
        for replica in self._fleet.replicas:
            values = [self._model_name, str(replica.number)]
            up.add_metric(values, replica.alive)
            queued.add_metric(values, replica.queued)
            restarts.add_metric(values, replica.restarts)
        yield from (up, queued, restarts)


def add_fleet_metrics(metrics: Metrics, fleet: Fleet) -> None:
    """Have `metrics.registry` show the sums of this process and the engines of a fleet."""
    own = metrics.registry

    def sources() -> Iterator[Iterable[Metric]]:
        yield own.collect()
        for families in fleet.call_each("metrics"):
            assert isinstance(families, list)
            yield families

    metrics.registry = CollectorRegistry()
    metrics.registry.register(SummedMetrics(sources))
    metrics.registry.register(FleetGauges(fleet, metrics.model_name))
