"""Stand-ins at the loop's seams: an engine that counts, a decoder of bytes, slots that obey."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from adapters_store.manifest import AdapterRef
from server.engine.sequence import Chunk, Sequence, StepOutput, TokenLogprob


@dataclass
class FakeStep:
    """A step that has run; `outputs` gives its results."""

    results: list[StepOutput]
    sampled: list[Sequence]
    failure: Exception | None = None

    def outputs(self) -> list[StepOutput]:
        if self.failure is not None:
            raise self.failure
        for sequence in self.sampled:
            sequence.pending -= 1
        return self.results


class CountingEngine:
    """The next token of a sequence is its length, modulo `wrap`; steps are recorded."""

    def __init__(self, ahead: int = 0, wrap: int = 1000) -> None:
        self.ahead = ahead
        self.wrap = wrap
        self.steps: list[list[tuple[int, int]]] = []
        self.before_step: Callable[[], None] = lambda: None
        self.overflows: set[int] = set()  # seq_ids
        self.fails_in_flight: set[int] = set()  # numbers of steps, from 0

    def launch(self, chunks: Seq[Chunk]) -> FakeStep:
        self.before_step()
        number = len(self.steps)
        self.steps.append([(chunk.sequence.seq_id, chunk.length) for chunk in chunks])
        sampled = [chunk.sequence for chunk in chunks if chunk.length == chunk.sequence.remaining]
        results = [self._run(chunk) for chunk in chunks]
        failure = RuntimeError("a kernel failed") if number in self.fails_in_flight else None
        return FakeStep(results, sampled, failure)

    def _run(self, chunk: Chunk) -> StepOutput:
        sequence = chunk.sequence
        completes = chunk.length == sequence.remaining
        token = sequence.num_tokens % self.wrap if completes else None
        sequence.num_computed += chunk.length
        scores: list[TokenLogprob] = []
        while sequence.num_scored < min(sequence.num_computed, len(sequence.prompt)):
            scores.append(TokenLogprob(sequence.prompt[sequence.num_scored], -1.0))
            sequence.num_scored += 1
        sequence.pending += completes
        if sequence.seq_id in self.overflows:
            return StepOutput(sequence, failure="not finite")
        wanted = tuple(scores) if sequence.params.prompt_logprobs else ()
        return StepOutput(sequence, token, prompt_logprobs=wanted)


class NumberDecoder:
    """Token 7 reads " 7"."""

    def __init__(self, *, skip_special: bool = True) -> None:
        self.skips = skip_special

    def push(self, token_id: int) -> str:
        return f" {token_id}"

    def unshown(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


class FakeSlots:
    """Two-step loading: `acquire` gives None until the ref is put into `loaded`, and while
    `max_in_use` other adapters are in use.
    """

    def __init__(self) -> None:
        self.loaded: set[AdapterRef] = set()
        self.contents: dict[AdapterRef, str] = {}
        self.broken: dict[AdapterRef, Exception] = {}
        self.prepared: list[AdapterRef] = []
        self.in_use: list[AdapterRef] = []
        self.max_in_use = 1000

    def prepare(self, ref: AdapterRef) -> None:
        self.prepared.append(ref)

    def acquire(self, ref: AdapterRef) -> int | None:
        if ref in self.broken:
            raise self.broken[ref]
        if ref not in self.loaded or len({*self.in_use, ref}) > self.max_in_use:
            return None
        self.in_use.append(ref)
        return 1 + sorted(self.loaded).index(ref)

    def content(self, ref: AdapterRef) -> str:
        return self.contents.get(ref, str(ref))

    def is_loaded(self, ref: AdapterRef) -> bool:
        return ref in self.loaded

    def release(self, ref: AdapterRef) -> None:
        self.in_use.remove(ref)
