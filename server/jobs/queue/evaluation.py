"""How good a job's adapter is, compared with what it was trained from. Knows no trainer."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Literal

from server.jobs.queue.training_metrics import finite

Verdict = Literal["better", "worse", "diverged"]

WORSE = 1.01
"""An adapter is worse if its loss is above this many times the loss to beat. A smaller difference
may come from rounding, and from the other jobs in the batch."""


@dataclass(frozen=True)
class Evaluation:
    """Losses in nats a token on the same lines; the verdict is None until training has ended.

    `held_out` says whether the lines were kept from training. Where none were, training lines stand
    in: they show at least harm. `start_loss` is of the adapter that the job continued.
    `adapter_loss` is of the state at `step`, the best that was scored; `last_loss` of the last
    step. In JSON, what is not finite is null.
    """

    lines: int
    held_out: bool
    base_loss: float | None
    start_loss: float | None = None
    adapter_loss: float | None = None
    last_loss: float | None = None
    step: int | None = None
    verdict: Verdict | None = None

    @property
    def to_beat(self) -> float | None:
        """The lowest loss of what the adapter was trained from; None if none is finite."""
        losses = (finite(self.base_loss), finite(self.start_loss))
        return min((loss for loss in losses if loss is not None), default=None)

    def of(self, step: int | None, adapter_loss: float, last_loss: float) -> "Evaluation":
        """Add the verdict on a state with `adapter_loss`, of a run that ended with `last_loss`."""
        verdict = self._verdict(adapter_loss, last_loss)
        return replace(
            self, adapter_loss=adapter_loss, last_loss=last_loss, step=step, verdict=verdict
        )

    def _verdict(self, adapter_loss: float, last_loss: float) -> Verdict | None:
        """None if nothing can be said, because the base's own loss is not finite."""
        to_beat = self.to_beat
        if to_beat is None:
            return None
        if not math.isfinite(adapter_loss) or not math.isfinite(last_loss):
            return "diverged"
        return "worse" if adapter_loss > WORSE * to_beat else "better"

    def to_document(self) -> dict[str, object]:
        """As JSON holds it, and the API shows it."""
        document = asdict(self)
        losses = ("base_loss", "start_loss", "adapter_loss", "last_loss")
        return document | {name: finite(document[name]) for name in losses}


@dataclass(frozen=True)
class Sample:
    """A question with three answers: of the base, of the trained adapter, and of the file.

    Answers are the most likely tokens, a few dozen at most; "..." marks where one was cut.
    """

    prompt: str
    expected: str
    base: str
    adapter: str

    def to_document(self) -> dict[str, str]:
        """As JSON holds it, and the API shows it."""
        return asdict(self)

    def sentence(self) -> str:
        """For a job's events."""
        return (
            f'Asked "{self.prompt}": the base model says "{self.base}", the adapter '
            f'"{self.adapter}", the file "{self.expected}"'
        )
