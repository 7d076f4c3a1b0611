"""AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) for several runs in few launches.

Each run has its own rate, decay, moments and count of steps, and none changes the numbers of
another. Knows no model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_BETA: Final = 0.9  # of the mean
_BETA_SQUARED: Final = 0.999  # of the mean square
_EPSILON: Final = 1e-8


@dataclass(frozen=True, eq=False)
class OptimizerState:
    """The trained parameter of a run, and the running means of its gradient and of that squared."""

    parameter: Tensor
    mean: Tensor
    square: Tensor

    @classmethod
    def of(cls, parameter: Tensor) -> "OptimizerState":
        """Before the first step."""
        return cls(parameter, torch.zeros_like(parameter), torch.zeros_like(parameter))


@dataclass(frozen=True, eq=False)
class OptimizerStep:
    """One step of a run. `number` counts from 1; the gradient is multiplied by `factor`."""

    state: OptimizerState
    number: int
    rate: float
    decay: float
    factor: float


@torch.no_grad()
def adamw(steps: Sequence[OptimizerStep]) -> None:
    """Take a step of each run. Their parameters' gradients are used up."""
    if not steps:
        return
    parameters = [step.state.parameter for step in steps]
    gradients = [_gradient(parameter) for parameter in parameters]
    means, squares = [step.state.mean for step in steps], [step.state.square for step in steps]
    torch._foreach_mul_(gradients, [step.factor for step in steps])
    torch._foreach_mul_(parameters, [1 - step.rate * step.decay for step in steps])
    torch._foreach_lerp_(means, gradients, 1 - _BETA)
    torch._foreach_mul_(squares, _BETA_SQUARED)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - _BETA_SQUARED)
    spreads = torch._foreach_sqrt(squares)
    torch._foreach_div_(spreads, [math.sqrt(1 - _BETA_SQUARED**step.number) for step in steps])
    torch._foreach_add_(spreads, _EPSILON)
    rates = [-step.rate / (1 - _BETA**step.number) for step in steps]
    torch._foreach_addcdiv_(parameters, means, spreads, rates)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "a step comes after a backward pass"
    return parameter.grad
