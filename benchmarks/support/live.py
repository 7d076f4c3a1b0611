"""A serving loop over a random model, without HTTP and without text, that times its answers."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from adapters_store.manifest import AdapterRef
from benchmarks.support.bare_engine import BLOCK_TOKENS, BareEngine
from benchmarks.support.stand_ins import NoText
from server.adapters.residency import ResidentAdapters
from server.bases.model import BaseModel
from server.engine.blocks import BlockPool
from server.engine.device import high_priority_stream
from server.engine.sequence import SamplingParams
from server.metrics import Metrics
from server.pulse import Pulse
from server.scheduler.loop import Limits, ServingLoop
from server.scheduler.request import CallbackListener, Generation, TextDelta
from server.training.colocated.training_thread import fast_thread_switching


@dataclass
class AnswerTimes:
    """When a request was sent, and when each token of its answer came, seconds."""

    sent_at: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)
    _error: Exception | None = None
    _done: threading.Event = field(default_factory=threading.Event)

    def hear(self, delta: TextDelta) -> None:
        self.times += [time.perf_counter()] * len(delta.tokens)
        if delta.finish is not None:
            self._error = delta.error
            self._done.set()

    def wait(self) -> "AnswerTimes":
        """Until the last token; raises what ended the answer, if that was an error."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self

    @property
    def done(self) -> bool:
        return self._done.is_set()

    @property
    def first_s(self) -> float:
        """From the request to the first token."""
        return self.times[0] - self.sent_at


class Live:
    """A running loop. Every prompt is new, so the prefix cache never helps."""

    def __init__(self, base: BaseModel, loop: ServingLoop, start_s: float) -> None:
        self.start_s = start_s
        self._loop = loop
        self._vocab_size = base.vocab_size
        self._random = torch.Generator().manual_seed(0)

    def prompts(self, count: int, tokens: int) -> list[tuple[int, ...]]:
        shape = (count, tokens)
        ids = torch.randint(self._vocab_size, shape, generator=self._random)
        return [tuple(row) for row in ids.tolist()]

    def ask(
        self, prompt: tuple[int, ...], ref: AdapterRef | None, answer_tokens: int
    ) -> AnswerTimes:
        params = SamplingParams(max_tokens=answer_tokens, temperature=0.0, ignore_eos=True)
        answer = AnswerTimes()
        generation = Generation("bench", "default", prompt, params, ref)
        self._loop.submit(generation, CallbackListener(answer.hear))
        return answer

    def ask_all(
        self, refs: Sequence[AdapterRef | None], prompt_tokens: int, answer_tokens: int
    ) -> list[AnswerTimes]:
        """Send one request for each, and return when all are answered."""
        prompts = self.prompts(len(refs), prompt_tokens)
        answers = [
            self.ask(prompt, ref, answer_tokens) for prompt, ref in zip(prompts, refs, strict=True)
        ]
        return [answer.wait() for answer in answers]


@contextmanager
def serving(
    base: BaseModel,
    adapters: ResidentAdapters,
    *,
    rows: int,
    context: int,
    step_tokens: int = 2048,
    pulse: Pulse | None = None,
) -> Iterator[Live]:
    """A loop of at most `rows` answers of `context` tokens each, prompts included; as an engine's
    process runs it."""
    within = high_priority_stream(base.device)
    with within():
        engine = BareEngine.of(base, adapters, rows=rows, context=context)
    loop = ServingLoop(
        engine.runner,
        adapters,
        BlockPool(engine.kv.num_blocks, BLOCK_TOKENS),
        NoText,
        eos=frozenset(),
        limits=Limits(
            max_rows=rows,
            max_step_tokens=max(step_tokens, rows),
            max_waiting=1024,
            max_context=context,
        ),
        metrics=Metrics("bench"),
        pulse=pulse,
        thread_context=within,
    )
    adapters.on_loaded = loop.wake
    loop.start()
    with fast_thread_switching():
        try:
            yield Live(base, loop, engine.start_s)
        finally:
            loop.stop(0)
            adapters.close()
