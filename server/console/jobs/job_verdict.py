"""A job's verdict in words for people who have not trained before. Knows no page."""

from dataclasses import dataclass
from typing import Literal

from server.jobs.queue.evaluation import Evaluation

Tone = Literal["good", "bad", "wait"]

_EVEN = 0.99  # times the loss to beat: closer is no difference worth the word


@dataclass(frozen=True)
class JobVerdict:
    """A headline, what it rests on, and how good it is."""

    headline: str
    reason: str
    tone: Tone

    @classmethod
    def of(cls, found: Evaluation) -> "JobVerdict":
        to_beat, reached = found.to_beat, found.adapter_loss
        what = "what it was trained from" if found.start_loss is not None else "the base"
        if found.verdict == "diverged":
            return cls("The training diverged", "Its loss is no number any more.", "bad")
        if to_beat is None or reached is None or found.verdict is None:
            reason = "The base's own loss is no number, so there is nothing to compare."
            return cls("There is no verdict", reason, "wait")
        change = f"from {to_beat:.4f} to {reached:.4f}, by {abs(1 - reached / to_beat):.0%}"
        if found.verdict == "worse":
            reason = f"Its loss on {_lines(found)} rose {change}."
            return cls(f"Worse than {what}", reason, "bad")
        if reached > _EVEN * to_beat:
            reason = f"Its loss on {_lines(found)} hardly moved: {to_beat:.4f}, then {reached:.4f}."
            return cls(f"About as good as {what}", reason, "wait")
        return cls(f"Better than {what}", f"Its loss on {_lines(found)} fell {change}.", "good")


def _lines(found: Evaluation) -> str:
    lines = "1 line" if found.lines == 1 else f"{found.lines} lines"
    if found.held_out:
        return f"{lines} that it did not learn from"
    return f"{lines} that it learnt from (which shows harm, and nothing else)"
