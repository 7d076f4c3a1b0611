"""How good a job's adapter is, beside what it came from. Numbers and words; knows no trainer."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Literal

Verdict = Literal["better", "worse", "diverged"]

WORSE = 1.01
"""Times the loss of what it came from, above which an adapter is worse: what is nearer may come of
rounding, and of who else was in the batch."""


@dataclass(frozen=True)
class Evaluation:
    """Losses in nats a token on the same lines; the verdict is None until the job is at its end.

    `held_out` says whether the lines were kept from training: where none were, some of those that
    it learnt from show at least whether harm was done. `start_loss` is of the adapter that the job
    went on from. `adapter_loss` is of the state at `step`, the best that was scored; `last_loss` of
    the last step. In JSON, what is not finite is null.
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
        """The lowest loss of what the adapter came from; None if none of them is finite."""
        known = (_finite(self.base_loss), _finite(self.start_loss))
        return min((loss for loss in known if loss is not None), default=None)

    def of(self, step: int | None, adapter_loss: float, last_loss: float) -> "Evaluation":
        """The end: a state with `adapter_loss`, of a run that ended with `last_loss`."""
        return replace(
            self,
            adapter_loss=adapter_loss,
            last_loss=last_loss,
            step=step,
            verdict=self._verdict(adapter_loss, last_loss),
        )

    def _verdict(self, adapter_loss: float, last_loss: float) -> Verdict | None:
        """None where nothing can be said: the base's own loss is not finite."""
        bar = self.to_beat
        if bar is None:
            return None
        if not math.isfinite(adapter_loss) or not math.isfinite(last_loss):
            return "diverged"
        return "worse" if adapter_loss > WORSE * bar else "better"

    def to_document(self) -> dict[str, object]:
        """As JSON holds it, and the API shows it."""
        told = asdict(self)
        losses = ("base_loss", "start_loss", "adapter_loss", "last_loss")
        return told | {name: _finite(told[name]) for name in losses}


@dataclass(frozen=True)
class Sample:
    """One question as it was answered before and after training, and as the file answers it.

    Answers are the most likely tokens, some dozens at most; "..." stands where one was cut.
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


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
