"""Counters and histograms, under vLLM's names (prefix `verandah:`) where the meaning is the same.

Knows neither who records nor who reads. No label grows with users, adapters or requests: series of
owners and adapters, of the busiest alone, are in `server.tenancy.usage.busy_names`.
`server.api.ops` reads gauges from their owners at each scrape.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX = "verandah:"
_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)
_LONG_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_FINISH_REASONS = ("stop", "length", "cancelled", "deadline", "error")
_REFUSALS = ("rate_limit", "queue_full", "unavailable")
_STATUSES = ("200", "400", "401", "403", "404", "409", "413", "429", "499", "500", "503", "504")
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class UndescribedCollector(Collector):
    """A collector whose sources need not run yet when it is registered."""

    def describe(self) -> Iterator[Metric]:
        """Nothing: without this, registering would call `collect`."""
        yield from ()


class CountedHistogram(Collector):
    """A histogram that takes many equal observations in one call, from one thread."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], model_name: str) -> None:
        self._name = PREFIX + name
        self._text = text
        self._bounds = bounds
        self._model_name = model_name
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Record `value`, `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The buckets and the sum, for `/metrics`."""
        family = HistogramMetricFamily(self._name, self._text, labels=("model_name",))
        bounds = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        family.add_metric([self._model_name], buckets, self._sum)
        yield family


class Metrics:
    """One server's counters and histograms, in a registry of their own.

    Every series carries `model_name`, the served id of the base model. Times are seconds.
    """

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.registry = CollectorRegistry()

        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of answers that ended.")
        self.prefix_cache_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_cache_hits = self._counter(
            "prefix_cache_hits", "Prompt tokens found in the prefix cache."
        )
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.num_preemptions = self._counter(
            "num_preemptions", "Sequences pre-empted because memory ran out."
        )
        self._request_success = self._family(
            "request_success", "Requests that ended, by reason.", "finished_reason", _FINISH_REASONS
        )
        self._rejections = self._family(
            "admission_rejections",
            "Requests refused before they ran, by reason.",
            "reason",
            _REFUSALS,
        )
        self._http_requests = self._family(
            "http_requests", "HTTP requests to /v1, by their answer's status.", "status", _STATUSES
        )

        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From submission to the first token.", _LONG_S
        )
        self.inter_token_latency = CountedHistogram(
            "inter_token_latency_seconds", "Between two tokens of one answer.", _SHORT_S, model_name
        )
        self.registry.register(self.inter_token_latency)
        self.e2e_request_latency = self._histogram(
            "e2e_request_latency_seconds", "From submission to the last token.", _LONG_S
        )
        self.request_queue_time = self._histogram(
            "request_queue_time_seconds", "From submission to the first step.", _LONG_S
        )
        self.request_prefill_time = self._histogram(
            "request_prefill_time_seconds", "From the first step to the first token.", _LONG_S
        )
        self.request_decode_time = self._histogram(
            "request_decode_time_seconds", "From the first token to the last.", _LONG_S
        )
        self.request_prompt_tokens = self._histogram(
            "request_prompt_tokens", "Prompt tokens of one request.", _TOKENS
        )
        self.request_generation_tokens = self._histogram(
            "request_generation_tokens", "Generated tokens of one request.", _TOKENS
        )
        self.iteration_tokens = self._histogram(
            "iteration_tokens_total", "Tokens computed in one step of the engine.", _TOKENS
        )

    def finished(self, reason: str) -> None:
        """Count one request that ended; `reason` is a FinishReason, so the label stays small."""
        self._request_success.labels(self.model_name, reason).inc()

    def rejected(self, reason: str) -> None:
        """Count one request refused; `reason` is one word from a fixed set, such as queue_full."""
        self._rejections.labels(self.model_name, reason).inc()

    def answered(self, status: int) -> None:
        """Count one HTTP request; `status` is one of ours, so the label stays small."""
        self._http_requests.labels(self.model_name, str(status)).inc()

    def _family(self, name: str, text: str, label: str, values: tuple[str, ...]) -> Counter:
        family = Counter(PREFIX + name, text, ("model_name", label), registry=self.registry)
        for value in values:  # from 0 on: Prometheus cannot see that a new series went from 0 to 1
            family.labels(self.model_name, value)
        return family

    def _counter(self, name: str, text: str) -> Counter:
        family = Counter(PREFIX + name, text, ("model_name",), registry=self.registry)
        return family.labels(self.model_name)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(
            PREFIX + name, text, ("model_name",), buckets=buckets, registry=self.registry
        )
        return family.labels(self.model_name)
