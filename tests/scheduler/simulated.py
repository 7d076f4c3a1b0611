"""Serving without a model: the real admission, plan and blocks, and a clock that steps advance."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from server.engine.blocks import BlockPool
from server.engine.sequence import SamplingParams, Sequence
from server.metrics import Metrics
from server.scheduler.admission import Admission
from server.scheduler.answer import Answer
from server.scheduler.policy import plan_step
from server.scheduler.request import CallbackListener, Generation
from server.scheduler.stop_strings import AnswerText
from server.scheduler.timing import AnswerTimes
from tests.scheduler.fakes import FakeSlots, NumberDecoder

METRICS = Metrics("base")


def seconds(prompt_tokens: int, decoding: int) -> float:
    """Of a step: what every step costs, each token of a prompt and each decoding row."""
    return 10e-3 + 50e-6 * prompt_tokens + 30e-6 * decoding


@dataclass
class Machine:
    rows: int = 64
    step_tokens: int = 512
    blocks: int = 4096

    def part(self, share: float) -> "Machine":
        """Room for such a share of the work, at the same speed."""
        return Machine(
            int(self.rows * share), int(self.step_tokens * share), int(self.blocks * share)
        )


@dataclass
class Simulation:
    """Runs until nothing is left to come, or to run.

    Attributes:
        first_tokens: seconds from arrival to the first token, by owner.
        served: tokens of prompts and answers, by owner, and `at` what time each came.
        on_end: called with the owner of an answer that ended; it may `ask` for more.
    """

    machine: Machine
    clock: float = 0.0
    first_tokens: dict[str, list[float]] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)  # numbers of requests, as they are admitted
    preemptions: int = 0
    on_end: Callable[[str], None] = lambda owner: None

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.machine.blocks, 16)
        self.slots = FakeSlots()
        self.admission = Admission(
            self.slots,
            self.pool,
            max_rows=self.machine.rows,
            metrics=METRICS,
            clock=lambda: self.clock,
        )
        self.running: dict[Sequence, Answer] = {}
        self._numbers = itertools.count(1)
        self._coming: list[tuple[float, int, Generation]] = []

    def ask(
        self, owner: str, prompt: int, answer: int, *, weight: float = 1.0, after: float = 0.0
    ) -> None:
        """A request comes `after` so many seconds. No prompt begins as another does."""
        number = next(self._numbers)
        tokens = (number, *range(prompt - 1))
        params = SamplingParams(max_tokens=answer)
        made = Generation("r", owner, tokens, params, weight=weight)
        heapq.heappush(self._coming, (self.clock + after, number, made))

    def run(self, until: float = float("inf")) -> "Simulation":
        while (self._coming or self.running or self.admission.num_waiting) and self.clock < until:
            if not self.running and not self.admission.num_waiting:
                self.clock = max(self.clock, self._coming[0][0])
            while self._coming and self._coming[0][0] <= self.clock:
                self.admission.add(self._answer(*self._coming[0]))
                heapq.heappop(self._coming)
            self.step()
        return self

    def step(self) -> None:
        for answer in self.admission.admit(self.running, _refuse, self.preempt):
            self.running[answer.sequence] = answer
            self.order.append(answer.arrival)
        plan = plan_step(
            [*self.running],
            self.pool,
            self.machine.step_tokens,
            self.admission.accounts(self.running),
        )
        for sequence in plan.preempted:
            self.preempt(self.running[sequence])
        assert plan.chunks, "the loop does not advance"
        prompts = sum(length for _, length in plan.chunks if length > 1)
        self.clock += seconds(prompts, sum(length == 1 for _, length in plan.chunks))
        for sequence, length in plan.chunks:
            self._advance(sequence, length)

    def preempt(self, answer: Answer) -> None:
        del self.running[answer.sequence]
        self.admission.put_back(answer)
        self.preemptions += 1

    def _advance(self, sequence: Sequence, length: int) -> None:
        answer = self.running[sequence]
        complete = sequence.remaining == length
        sequence.num_computed += length
        if not complete:
            return
        sequence.output.append(1)
        if len(sequence.output) == 1:
            waited = self.clock - answer.times.submitted
            self.first_tokens.setdefault(answer.owner, []).append(waited)
            self._count(answer.owner, len(sequence.prompt))
        self._count(answer.owner, 1)
        if len(sequence.output) == sequence.params.max_tokens:
            del self.running[sequence]
            self.admission.release(answer)
            self.on_end(answer.owner)

    def _count(self, owner: str, tokens: int) -> None:
        self.served[owner] = self.served.get(owner, 0) + tokens

    def _answer(self, at: float, number: int, made: Generation) -> Answer:
        listener = CallbackListener(lambda delta: None)
        return Answer(
            request=made,
            index=0,
            arrival=number,
            sequence=Sequence(number, made.prompt, made.params, 0, owner=made.owner),
            text=AnswerText(NumberDecoder(), (), include_stop=False),
            listener=listener,
            token_sink=listener.token_sink(0),
            times=AnswerTimes(submitted=at, deadline=float("inf")),
        )


def _refuse(answer: Answer, error: Exception) -> None:
    raise error


def p95(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.95)]
