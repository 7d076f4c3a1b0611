"""The learning rate as a function of the step. Pure."""

import math


def learning_rate(
    step: int, *, peak: float, total_steps: int, warmup_steps: int, decay: str
) -> float:
    """The rate of update `step` (counted from 0): a straight climb to `peak`, then the decay.

    The decay ends at zero one step after the last update, so that no update is wasted.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if decay == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * share))
    if decay == "linear":
        return peak * (1 - share)
    return peak
