"""Take the steps of one run, or of several in one batch. Knows no queue and no files.

Runs on one base share its products: all their examples go through the base together, and each run's
adapter sees only its own rows. Losses, gradients, clipping and optimizer are apart, so that a run
learns what it would learn by itself, and one that diverges harms no other. The host waits for the
accelerator once a step, however many runs there are.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from server.adapters.learning.trainable import TrainableAdapter, active_together
from server.adapters.methods.row_shares import sent
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.run.adamw import OptimizerStep, adamw
from server.training.run.batches import micro_batches
from server.training.run.examples import Example
from server.training.run.loss import Score, counted_losses, positions
from server.training.run.trainer import Trainer


def run(trainer: Trainer) -> Iterator[TrainingMetrics]:
    """Train one run from where it is to its end, yielding the metrics of each step.

    Raises:
        TrainingFailed: see `Trainer.next_step`.
        torch.OutOfMemoryError: a forward pass takes more than the accelerator has.
    """
    first = trainer.start()
    if first is not None:
        yield first
    while not trainer.done:
        (result,) = take_step([trainer], trainer.part_tokens)
        if isinstance(result, Exception):
            raise result
        yield result


def take_step(trainers: Sequence[Trainer], max_tokens: int) -> list[TrainingMetrics | Exception]:
    """One optimizer step of every run, none of which may be done.

    Args:
        trainers: runs on one base.
        max_tokens: positions of one forward pass, padding included; a longer example is a forward
            pass of its own.

    Returns:
        The metrics of each run, or its error, in order. If memory runs out, the step is tried in
        passes of half the size. What fails for several runs together is tried for each by itself.
    """
    members = [_Member(place, trainer) for place, trainer in enumerate(trainers)]
    # Dropout draws one mask for a whole batch: other runs in the batch would change it.
    alone = [[member] for member in members if member.trainer.plan.dropout]
    together = _by_kind([member for member in members if not member.trainer.plan.dropout])
    totals = torch.zeros(2, len(members), dtype=torch.float64, device=trainers[0].base.device)
    try:
        for group in [*alone, together]:
            for part in _parts(group, max_tokens):
                _accumulate(part, totals)
        # All that the host must read, in one wait for the accelerator.
        norms = torch.stack([member.trainer.gradient_norm() for member in members])
        read = torch.cat([totals, norms.double()[None]]).t().tolist()
    except Exception as error:
        if len(trainers) == 1:
            return [error]
        half, least = max_tokens // 2, max(trainer.part_tokens for trainer in trainers)
        if isinstance(error, torch.OutOfMemoryError) and half >= least:
            return take_step(trainers, half)
        return [result for one in trainers for result in take_step([one], max_tokens)]
    for member, (loss, hits, norm) in zip(members, read, strict=True):
        member.scored(loss, hits, norm)
    adamw([member.outcome for member in members if isinstance(member.outcome, OptimizerStep)])
    return [member.stepped() for member in members]


@dataclass(eq=False)
class _Member:
    """A run's part of one step. `place` is its number among the runs of the step."""

    place: int
    trainer: Trainer
    batch: list[Example] = field(default_factory=list)
    targets: int = 0
    score: Score = field(init=False)
    outcome: OptimizerStep | Exception = field(init=False)

    def open(self) -> None:
        """Draw the batch. It seeds the forward passes, so it comes just before them."""
        self.batch = self.trainer.batch()
        self.targets = sum(example.num_targets for example in self.batch)

    def scored(self, loss: float, hits: float, norm: float) -> None:
        """Take in the sums over the batch, and the norm of its gradient."""
        self.score = Score(loss / self.targets, hits / self.targets)
        try:
            self.outcome = self.trainer.next_step(self.score.loss, norm)
        except Exception as error:
            self.outcome = error

    def stepped(self) -> TrainingMetrics | Exception:
        """Call after the optimizer's step; a run that failed has taken none."""
        if isinstance(self.outcome, Exception):
            return self.outcome
        try:
            return self.trainer.stepped(self.score)
        except Exception as error:
            return error


def _by_kind(members: Sequence[_Member]) -> list[_Member]:
    """Ordered so that adapters that are computed as one are neighbours: see `active_together`."""
    kinds: dict[Hashable, list[_Member]] = {}
    for member in members:
        kinds.setdefault(member.trainer.adapter.kind, []).append(member)
    return [member for alike in kinds.values() for member in alike]


_Part = list[tuple[_Member, list[Example]]]


def _parts(members: Sequence[_Member], max_tokens: int) -> Iterator[_Part]:
    """Cut the members' batches into forward passes: similar lengths together, in members' order."""
    for member in members:
        member.open()
    rows = [(member, example) for member in members for example in member.batch]
    lengths = [len(example.tokens) - 1 for _, example in rows]
    for chosen in micro_batches(range(len(rows)), lengths, max_tokens):
        by_member: dict[_Member, list[Example]] = {}
        for index in chosen:
            member, example = rows[index]
            by_member.setdefault(member, []).append(example)
        yield [(member, by_member[member]) for member in members if member in by_member]


def _accumulate(part: _Part, totals: Tensor) -> None:
    """Add one forward pass's losses and hits to `totals` [2, members], and its gradients to the
    members' adapters."""
    examples = [example for _, rows in part for example in rows]
    width = positions(examples)
    shares: list[tuple[TrainableAdapter | None, int]] = [
        (member.trainer.adapter, width * len(rows)) for member, rows in part
    ]
    base = part[0][0].trainer.base
    owner, weight = _counted(part, totals.device)
    with active_together(base, shares):
        losses, hits = counted_losses(base, examples)
        totals.index_add_(1, owner, torch.stack([losses.detach().double(), hits.double()]))
        torch.autograd.backward((losses * weight).sum())


def _counted(part: _Part, device: torch.device) -> tuple[Tensor, Tensor]:
    """The place of each counted token's member, int64, and its weight in that member's mean loss:
    both [counted], in the order of the examples."""
    counts = [sum(example.num_targets for example in rows) for _, rows in part]
    owner = np.repeat([member.place for member, _ in part], counts)
    weight = np.repeat(np.array([1 / member.targets for member, _ in part], np.float32), counts)
    return sent(torch.from_numpy(owner), device), sent(torch.from_numpy(weight), device)
