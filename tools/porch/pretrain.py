"""Training on packed rows: sources mixed by share, a schedule that ends on the clock."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tools.porch.muon import Muon
from tools.porch.porch_model import IGNORED, Porch
from tools.porch.porch_tokenizer import CONTEXT

_LOG_EVERY = 20
_SNAPSHOT_EVERY = 1000


@dataclass
class Source:
    """Ids of one source, all kept on the training device.

    `ids` is one row of tokens. `learned`, when given, marks the tokens that count in the
    loss, and the row is then made of whole blocks of `CONTEXT + 1` tokens.
    """

    name: str
    ids: Tensor
    learned: Tensor | None = None
    _order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns ids and targets (count, CONTEXT); no block repeats within a pass."""
        while len(self._order) < count:
            self._order = torch.cat([self._order, self._pass(generator)])
        starts, self._order = self._order[:count], self._order[count:]
        steps = torch.arange(CONTEXT + 1, device=self.ids.device)
        index = starts.to(self.ids.device)[:, None] + steps
        block = self.ids[index].long()
        targets = block[:, 1:]
        if self.learned is not None:
            targets = targets.masked_fill(~self.learned[index][:, 1:], IGNORED)
        return block[:, :-1], targets

    def _pass(self, generator: torch.Generator) -> Tensor:
        """Returns the starts of one shuffled pass, cut at a fresh offset each time."""
        width = CONTEXT + 1
        offset = 0
        if self.learned is None:
            spare = min(width, len(self.ids) - width)
            offset = int(torch.randint(0, spare + 1, (1,), generator=generator))
        blocks = (len(self.ids) - offset) // width
        return torch.randperm(blocks, generator=generator) * width + offset


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    `shares` maps progress in [0, 1] to each source's share of a batch; the learning rates
    rise for `warmup_steps`, hold, then fall in a line to zero from `decay_from` on.
    """

    minutes: float
    rows: int
    shares: Callable[[float], dict[str, float]]
    matrix_rate: float
    other_rate: float
    warmup_steps: int
    decay_from: float
    seed: int
    matrix_decay: float = 0.05
    momentum: float = 0.95


@dataclass
class Curve:
    """What one training run did: (step, tokens, seconds, nats a token) points and totals."""

    points: list[tuple[int, int, float, float]] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


def train(
    model: Porch,
    sources: list[Source],
    plan: Plan,
    label: str,
    snapshot: Callable[[Porch], None] = lambda _: None,
) -> Curve:
    """Trains the model in place until the plan's minutes have passed.

    `snapshot` is called every 1000 steps, so that a lost machine does not lose the run.
    """
    loss_of = torch.compile(model.loss) if _on_gpu(model) else model.loss
    optimizers = _optimizers(model, plan)
    batches = _Batches(sources, plan)
    model.zero_grad()
    # Compiling is no training: its time must not eat into the schedule.
    loss_of(*batches.next(0.0)).backward()
    model.zero_grad()
    curve = Curve()
    total = torch.zeros((), device=model.norm.weight.device)
    start = time.perf_counter()
    while (progress := (time.perf_counter() - start) / (60 * plan.minutes)) < 1:
        _set_rates(optimizers, plan, progress, curve.steps)
        loss = loss_of(*batches.next(progress))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        total += loss.detach()
        curve.steps += 1
        curve.tokens += plan.rows * CONTEXT
        if curve.steps % _LOG_EVERY == 0:
            curve.seconds = time.perf_counter() - start
            _log(curve, float(total) / _LOG_EVERY, label)
            total.zero_()
        if curve.steps % _SNAPSHOT_EVERY == 0:
            snapshot(model)
    curve.seconds = time.perf_counter() - start
    return curve


class _Batches:
    """Draws batches that follow the plan's shares, with rounding left to chance."""

    def __init__(self, sources: list[Source], plan: Plan) -> None:
        self.sources = {source.name: source for source in sources}
        self.plan = plan
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.random = np.random.default_rng(plan.seed)

    def next(self, progress: float) -> tuple[Tensor, Tensor]:
        """Returns ids and targets (rows, CONTEXT)."""
        planned = self.plan.shares(progress)
        shares = {name: planned[name] for name in self.sources if planned.get(name)}
        chances = np.array(list(shares.values()))
        counts = self.random.multinomial(self.plan.rows, chances / chances.sum())
        drawn = [
            self.sources[name].draw(int(count), self.generator)
            for name, count in zip(shares, counts, strict=True)
            if count
        ]
        return torch.cat([ids for ids, _ in drawn]), torch.cat([aims for _, aims in drawn])


def _optimizers(model: Porch, plan: Plan) -> list[torch.optim.Optimizer]:
    matrices = [weight for weight in model.layers.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    adam = torch.optim.AdamW(
        [
            {"params": [model.embed_tokens.weight], "weight_decay": 0.01},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=plan.other_rate,
        betas=(0.9, 0.95),
        fused=_on_gpu(model),
    )
    return [Muon(matrices, plan.matrix_rate, plan.momentum, plan.matrix_decay), adam]


def _set_rates(
    optimizers: list[torch.optim.Optimizer], plan: Plan, progress: float, step: int
) -> None:
    rise = min(1.0, (step + 1) / plan.warmup_steps)
    fall = min(1.0, (1 - progress) / (1 - plan.decay_from))
    for optimizer, rate in zip(optimizers, (plan.matrix_rate, plan.other_rate), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * rise * fall


def _log(curve: Curve, loss: float, label: str) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"{label}: the loss became {loss} at step {curve.steps}")
    curve.points.append((curve.steps, curve.tokens, round(curve.seconds, 2), round(loss, 4)))
    if curve.steps % (10 * _LOG_EVERY) == 0 or curve.steps <= 2 * _LOG_EVERY:
        speed = curve.tokens / curve.seconds / 1e6
        print(
            f"{label}: step {curve.steps}, {curve.tokens / 1e6:.0f} M tokens, "
            f"{curve.seconds:.0f} s, {speed:.2f} M tokens/s, loss {loss:.3f}",
            flush=True,
        )


def _on_gpu(model: Porch) -> bool:
    return model.norm.weight.is_cuda
