"""Muon, the optimizer that steps hidden matrices along an orthogonalized momentum.

Method: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Odd quintic whose repeated use drives every singular value into about [0.7, 1.2].
_LINEAR, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized for all matrices of one size at once."""

    def __init__(
        self, weights: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(list(weights), defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes one step; every weight needs a gradient."""
        for group in self.param_groups:
            same_size: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                same_size[weight.shape].append(weight)
            for weights in same_size.values():
                self._step_together(weights, group)

    def _step_together(self, weights: list[Tensor], group: dict[str, float]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        running = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(running, gradients, 1 - group["momentum"])
        looked_ahead = torch._foreach_lerp(gradients, running, group["momentum"])
        updates = orthogonalize(torch.stack(list(looked_ahead))).float()
        out_width, in_width = weights[0].shape
        scale = max(1.0, out_width / in_width) ** 0.5
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(updates.unbind()), alpha=-group["lr"] * scale)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Maps a stack (n, rows, columns) to nearly orthogonal bfloat16 matrices."""
    x: Tensor = matrices.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(_ITERATIONS):
        gram: Tensor = x @ x.mT
        x = _LINEAR * x + (_CUBIC * gram + _QUINTIC * gram @ gram) @ x
    return x.mT if tall else x
