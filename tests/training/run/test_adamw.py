"""Steps of several runs at once, against torch's AdamW of each alone."""

import torch
from torch import Tensor

from server.training.run.adamw import OptimizerState, OptimizerStep, adamw

RUNS = ((7, 1e-2, 0.0), (300, 3e-3, 0.1), (1, 0.5, 0.01))
"""The size of each run's parameter, its rate and its decay."""


def drawn(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_each_takes_the_steps_of_torchs_own() -> None:
    mine = [OptimizerState.of(drawn(size, 0).requires_grad_()) for size, _, _ in RUNS]
    plain = [drawn(size, 0).requires_grad_() for size, _, _ in RUNS]
    torchs = [
        torch.optim.AdamW([parameter], lr=rate, weight_decay=decay)
        for parameter, (_, rate, decay) in zip(plain, RUNS, strict=True)
    ]
    for number in range(1, 6):
        steps = []
        for place, (size, rate, decay) in enumerate(RUNS):
            if number == 2 and place == 1:  # one that joined late is a step behind
                continue
            behind = place == 1 and number > 2
            gradient = drawn(size, 10 * number + place)
            mine[place].parameter.grad = 4 * gradient
            plain[place].grad = gradient
            torchs[place].step()
            steps.append(OptimizerStep(mine[place], number - behind, rate, decay, 0.25))
        adamw(steps)
    for state, parameter in zip(mine, plain, strict=True):
        torch.testing.assert_close(state.parameter, parameter, rtol=1e-5, atol=1e-7)


def test_a_poisoned_neighbour_is_alone_in_it() -> None:
    well, ill = (OptimizerState.of(drawn(5, seed).requires_grad_()) for seed in (1, 2))
    well.parameter.grad, ill.parameter.grad = drawn(5, 3), torch.full((5,), torch.nan)
    adamw([OptimizerStep(ill, 1, 0.1, 0.0, 1.0), OptimizerStep(well, 1, 0.1, 0.0, 1.0)])
    assert well.parameter.isfinite().all()
    assert not ill.parameter.isfinite().any()


def test_no_step_is_no_step() -> None:
    adamw([])
