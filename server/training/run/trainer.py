"""The state of one run: an adapter on a frozen base, its optimizer state, and its step.

Knows no queue, no files and no HTTP; `server.training.run.run_steps` takes the steps. Everything
random is a pure function of (seed, step). So a run that is restored from `Trainer.checkpoint` in a
new process ends in the same bits as one that was never interrupted (CPU, the same dtype and number
of threads, no other run in its batches).
"""

import hashlib
import math
import time
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from server.adapters.learning.trainable import TrainableAdapter
from server.bases.model import BaseModel
from server.errors import TrainingFailed
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.run.adamw import OptimizerState, OptimizerStep
from server.training.run.batches import epoch_batches, micro_batches, steps_per_epoch
from server.training.run.checkpoint import RunCheckpoint
from server.training.run.defaults import TrainPlan
from server.training.run.examples import Example
from server.training.run.loss import Score, ScoreSums, counted_losses

_LAYOUT = "flat"  # of checkpoints: one parameter an adapter
_LOGITS_BYTES = 2**31  # what one part's logits may take, with their gradient and softmax


class Trainer:
    """The state of one run.

    Args:
        train, valid: examples to learn from, and held-out ones to score (may be empty).
    """

    def __init__(
        self,
        base: BaseModel,
        adapter: TrainableAdapter,
        train: Sequence[Example],
        valid: Sequence[Example],
        plan: TrainPlan,
    ) -> None:
        if not train:
            raise TrainingFailed(
                "no line of the training file holds an answer to train on: add lines with answers",
                code="no_examples",
            )
        self.base = base
        self.adapter = adapter
        self.plan = plan
        self._train = train
        self._valid = valid
        logits_tokens = max(1, _LOGITS_BYTES // (3 * 4 * base.vocab_size))
        self.part_tokens = min(plan.max_tokens_per_batch, logits_tokens)
        self._lengths = [len(example.tokens) - 1 for example in train]  # the last is only a target
        (parameter,) = adapter.parameters()
        self._optimizer = OptimizerState.of(parameter)
        per_epoch = steps_per_epoch(len(train), plan.batch_size)
        self._per_epoch = per_epoch
        self.total_steps = per_epoch * plan.n_epochs
        self.evaluate_every = max(per_epoch, math.ceil(self.total_steps / plan.evaluations))
        self._order: tuple[int, list[list[int]]] | None = None  # an epoch and its batches
        self._started: tuple[float, int, int] | None = None  # when, at which step and tokens
        self.step = 0
        self.trained_tokens = 0

    @property
    def done(self) -> bool:
        return self.step == self.total_steps

    def start(self) -> TrainingMetrics | None:
        """Start the clock. Return the metrics of step 0, which comes before any update: the
        validation loss scores the start. None if the run was resumed."""
        self._started = time.perf_counter(), self.step, self.trained_tokens
        return self._metrics(None, self._validated(), 0.0) if self.step == 0 else None

    def batch(self) -> list[Example]:
        """The examples of the next step. Seeds dropout, and clears the last gradient."""
        # The CPU alone: see `server.adapters.methods.projection.thinned`.
        torch.default_generator.manual_seed((self.plan.seed * 1_000_003 + self.step) % 2**63)
        self._optimizer.parameter.grad = None
        return [self._train[i] for i in self._batch()]

    def gradient_norm(self) -> Tensor:
        """The norm of the batch's gradient, on its device: reading it waits for the accelerator."""
        parameter = self._optimizer.parameter
        if parameter.grad is None:  # the losses do not depend on it
            parameter.grad = torch.zeros_like(parameter)
        norm: Tensor = torch.linalg.vector_norm(parameter.grad)
        return norm

    def next_step(self, loss: float, norm: float) -> OptimizerStep:
        """The step to take. Call it after the backward passes of the batch.

        Args:
            loss: of the batch.
            norm: what `gradient_norm` gave.

        Raises:
            TrainingFailed: `diverged`, when the loss or its gradient is no longer finite.
        """
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainingFailed(
                f"the loss is no longer finite at step {self.step + 1}: train again with a "
                f"learning_rate below {self.plan.learning_rate:g}, or check the data for "
                "extremely long or garbled answers",
                code="diverged",
            )
        limit = self.plan.max_grad_norm
        return OptimizerStep(
            self._optimizer,
            number=self.step + 1,
            rate=self._learning_rate(),
            decay=self.plan.weight_decay,
            factor=limit / norm if norm > limit else 1.0,
        )

    def stepped(self, score: Score) -> TrainingMetrics:
        """Count a step whose batch scored `score`; score the held-out examples when due."""
        rate = self._learning_rate()
        self.trained_tokens += sum(self._lengths[i] for i in self._batch())
        self.step += 1
        evaluates = self.done or self.step % self.evaluate_every == 0
        return self._metrics(score, self._validated() if evaluates else None, rate)

    def score(self, examples: Sequence[Example]) -> Score:
        """Score one or more examples with the adapter as it is."""
        with self.adapter.active():
            return self.score_base(examples)

    def score_base(self, examples: Sequence[Example]) -> Score:
        """Score one or more examples with the base as it is."""
        lengths = [len(example.tokens) - 1 for example in examples]
        total = ScoreSums()
        with torch.no_grad():
            for part in micro_batches(range(len(examples)), lengths, self.part_tokens):
                total.add(*counted_losses(self.base, [examples[i] for i in part]))
        return total.score()

    def checkpoint(self) -> RunCheckpoint:
        """Everything that the rest of the run depends on, and which run it is."""
        tensors = {name: tensor.detach() for name, tensor in self._tensors().items()}
        state = {"run": self._run_id, "trained_tokens": self.trained_tokens}
        return RunCheckpoint(self.step, tensors, state)

    def fits(self, checkpoint: RunCheckpoint) -> bool:
        """Whether a run of this plan, on these examples and this base, made it."""
        return checkpoint.state.get("run") == self._run_id

    def restore(self, checkpoint: RunCheckpoint) -> None:
        """Continue from `checkpoint`, which must fit."""
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(checkpoint.tensors[name])
        self.step = checkpoint.step
        self.trained_tokens = int(str(checkpoint.state["trained_tokens"]))

    def _tensors(self) -> dict[str, Tensor]:
        state = self._optimizer
        return {"value": state.parameter, "mean": state.mean, "square": state.square}

    @cached_property
    def _run_id(self) -> str:
        facts = (_LAYOUT, self.base.fingerprint, self.plan, self._train, self._valid)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def _learning_rate(self) -> float:
        plan, total = self.plan, self.total_steps
        warmup = round(plan.warmup_ratio * total)
        return learning_rate(self.step, plan.learning_rate, total, warmup, plan.schedule)

    def _batch(self) -> list[int]:
        epoch, place = divmod(self.step, self._per_epoch)
        if self._order is None or self._order[0] != epoch:
            size, seed = self.plan.batch_size, self.plan.seed
            self._order = epoch, epoch_batches(self._lengths, size, seed=seed, epoch=epoch)
        return self._order[1][place]

    def _validated(self) -> Score | None:
        return self.score(self._valid) if self._valid else None

    def _metrics(self, train: Score | None, valid: Score | None, rate: float) -> TrainingMetrics:
        tokens_per_second, seconds_left = self._speed()
        return TrainingMetrics(
            step=self.step,
            total_steps=self.total_steps,
            epoch=round(self.step / self._per_epoch, 4),
            trained_tokens=self.trained_tokens,
            learning_rate=rate,
            tokens_per_second=round(tokens_per_second, 1),
            seconds_left=round(seconds_left, 1),
            train_loss=train.loss if train else None,
            train_mean_token_accuracy=train.accuracy if train else None,
            valid_loss=valid.loss if valid else None,
            valid_mean_token_accuracy=valid.accuracy if valid else None,
        )

    def _speed(self) -> tuple[float, float]:
        """Trained tokens per second of wall time since `start`, and seconds until the end."""
        if self._started is None or self.step == self._started[1]:
            return 0.0, 0.0
        started_at, first_step, first_tokens = self._started
        elapsed = max(time.perf_counter() - started_at, 1e-9)
        step_s = elapsed / (self.step - first_step)
        tokens = self.trained_tokens - first_tokens
        return tokens / elapsed, step_s * (self.total_steps - self.step)


def learning_rate(step: int, peak: float, total: int, warmup: int, decay: str) -> float:
    """The rate of update `step`, counted from 0 to `total`: it rises in a line to `peak` in the
    first `warmup` updates, then decays.

    The decay would reach zero one step after the last update, so that no update is wasted.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, total - warmup)
    if decay == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * share))
    if decay == "linear":
        return peak * (1 - share)
    return peak
