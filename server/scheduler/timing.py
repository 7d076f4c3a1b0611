"""Measures the times of answers and reports them to the metrics. Knows no engine, no listeners."""

from collections import defaultdict
from dataclasses import dataclass

from server.engine.sequence import FinishReason, Sequence
from server.metrics import Metrics
from server.pulse import Pulse


@dataclass
class AnswerTimes:
    """Seconds on the loop's clock; None: not yet."""

    submitted: float
    deadline: float
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    def start(self, now: float, metrics: Metrics) -> None:
        """The answer was admitted; only the first admission counts."""
        if self.started is None:
            self.started = now
            metrics.request_queue_time.observe(now - self.submitted)

    def token(self, now: float, step: "StepMetrics") -> None:
        """The answer got a token."""
        step.tokens += 1
        if self.last_token is not None:
            step.gaps[now - self.last_token] += 1
        elif self.first_token is None:
            self.first_token = now
            step.first(now - self.submitted, now - (self.started or self.submitted))
        self.last_token = now

    def end(self, sequence: Sequence, now: float, metrics: Metrics) -> None:
        """The answer ended; `sequence.finish` says how."""
        reason = sequence.finish or FinishReason.ERROR
        metrics.finished(reason.value)
        metrics.e2e_request_latency.observe(now - self.submitted)
        metrics.request_prompt_tokens.observe(len(sequence.prompt))
        metrics.request_generation_tokens.observe(len(sequence.output))
        if self.first_token is not None and self.last_token is not None:
            metrics.prompt_tokens.inc(len(sequence.prompt))
            if not sequence.params.prompt_logprobs:
                metrics.prefix_cache_queries.inc(len(sequence.prompt))
                metrics.prefix_cache_hits.inc(sequence.num_reused)
            metrics.request_decode_time.observe(self.last_token - self.first_token)


class StepMetrics:
    """Sums up the tokens of one step for the metrics.

    An observation costs a microsecond, and mostly all answers of a step have waited equally long:
    so there is one for each length of time and not for each token.
    """

    def __init__(self, metrics: Metrics, pulse: Pulse | None = None) -> None:
        self._metrics = metrics
        self._pulse = pulse
        self.tokens = 0
        self.gaps: defaultdict[float, int] = defaultdict(int)  # tokens by seconds since the last

    def first(self, since_submitted: float, since_started: float) -> None:
        """An answer's first token came."""
        self._metrics.time_to_first_token.observe(since_submitted)
        self._metrics.request_prefill_time.observe(since_started)

    def end(self) -> None:
        """All tokens of the step are counted."""
        self._metrics.generation_tokens.inc(self.tokens)
        for gap, tokens in self.gaps.items():
            self._metrics.inter_token_latency.observe(gap, tokens)
        if self._pulse is not None:
            self._pulse.step(self.gaps)
        self.tokens = 0
        self.gaps.clear()
