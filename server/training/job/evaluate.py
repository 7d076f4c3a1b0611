"""Compare an adapter with what it was trained from, before it is published: losses, and words.

Knows no queue and no store. The lines are held out from training. Where none are, some training
lines stand in, which shows harm and nothing more.
"""

import math

from server.errors import TrainingFailed
from server.jobs.queue.evaluation import Evaluation
from server.jobs.queue.job import Checkpoint
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.job.training_setup import TrainingSetup

_TRAIN_LINES = 32  # scored where no line is held out


def baseline(setup: TrainingSetup, first: TrainingMetrics | None) -> Evaluation:
    """The losses to compare with: the base's, and that of the adapter that the job continues.

    Args:
        first: the metrics before training. None: the run was resumed, and the adapter that it
            continues cannot be scored any more.
    """
    trainer = setup.trainer
    lines = setup.valid or setup.train[:_TRAIN_LINES]
    start_loss = None
    if first is not None:
        start_loss = trainer.score(lines).loss if first.valid_loss is None else first.valid_loss
    if start_loss is not None and setup.start is None:
        # A new adapter changes nothing yet: what is scored before its first step is the base.
        return Evaluation(len(lines), bool(setup.valid), start_loss)
    return Evaluation(len(lines), bool(setup.valid), trainer.score_base(lines).loss, start_loss)


def evaluated(
    before: Evaluation,
    setup: TrainingSetup,
    step: int,
    metrics: TrainingMetrics,
    last: TrainingMetrics,
) -> Evaluation:
    """The verdict on the adapter as it is now.

    Args:
        before: what `baseline` gave.
        step, metrics: of the adapter as it is.
        last: the metrics of the run's last step.
    """
    if before.held_out:
        return before.of(step, metrics.valid_loss_or_nan, last.valid_loss_or_nan)
    loss = setup.trainer.score(setup.train[:_TRAIN_LINES]).loss
    return before.of(step, loss, loss)


def diverged_evaluation(before: Evaluation, last: TrainingMetrics) -> Evaluation:
    """The verdict on a run whose loss is no longer finite; an earlier state may have been good."""
    if last.best_valid_loss is None:
        return before.of(None, math.nan, math.nan)
    return before.of(last.best_step, last.best_valid_loss, math.nan)


def announcement(evaluation: Evaluation, setup: TrainingSetup) -> str:
    """Before training: on what the adapter will be evaluated, and the losses to compare with."""
    lines = "1 line" if evaluation.lines == 1 else f"{evaluation.lines} lines"
    losses = _losses_before(evaluation, setup)
    if evaluation.held_out:
        return f"The adapter will be evaluated on {lines} held out from training. {losses}"
    return (
        f"No line is held out. The adapter is evaluated on {lines} that it is trained on, which "
        "shows harm, and not how it answers new questions. Give a validation_file, or a "
        f"validation_split above 0. {losses}"
    )


def comparison(evaluation: Evaluation, setup: TrainingSetup) -> str:
    kind = "Validation loss" if evaluation.held_out else "Loss on training lines"
    start, step = evaluation.start_loss, evaluation.step
    start_loss = "" if start is None else f", {_start(setup)} {_loss(start)}"
    early = evaluation.held_out and step is not None and step < setup.trainer.step
    at = f" at step {step} of {setup.trainer.step}, where it was lowest" if early else ""
    return (
        f"{kind}: base model {_loss(evaluation.base_loss)}{start_loss}, "
        f"trained adapter {_loss(evaluation.adapter_loss)}{at}"
    )


def refusal(evaluation: Evaluation, setup: TrainingSetup) -> TrainingFailed | None:
    """Why the adapter must not be published, with what to do; None: it may."""
    if evaluation.verdict == "diverged":
        return TrainingFailed(
            f"the loss was no longer finite at the end. {comparison(evaluation, setup)}. "
            f"{advice(setup, evaluation.step)}",
            code="diverged",
        )
    if evaluation.verdict == "worse" and setup.plan.publish == "if_better":
        return TrainingFailed(
            "the adapter was not published, because it is worse than what it was trained from. "
            f"{comparison(evaluation, setup)}. {advice(setup, evaluation.step)}",
            code="made_worse",
        )
    return None


def advice(setup: TrainingSetup, best_step: int | None) -> str:
    """What to do otherwise next time, in numbers."""
    plan, trainer = setup.plan, setup.trainer
    options = [f"a learning_rate of {plan.learning_rate / 3:.1g} (it was {plan.learning_rate:g})"]
    per_epoch = trainer.total_steps // plan.n_epochs
    epochs = max(1, round((best_step or 0) / per_epoch))
    if best_step and best_step < trainer.step and epochs < plan.n_epochs:
        options.append(f"n_epochs={epochs}, after which the loss was lowest")
    options.append(f"more lines than {len(setup.train)}")
    return f"Try {', or '.join(options)}"


def best_checkpoint(checkpoints: tuple[Checkpoint, ...]) -> str:
    """The best of the versions that a failed job leaves, in a sentence; none: no words."""
    scored = [(one.metrics.valid_loss_or_nan, one) for one in checkpoints]
    scored = [(loss, one) for loss, one in scored if math.isfinite(loss)]
    if not scored:
        return ""
    loss, best = min(scored, key=lambda pair: pair[0])
    return f". Its best checkpoint is {best.model}: loss {loss:.4f} at step {best.step}"


def _losses_before(evaluation: Evaluation, setup: TrainingSetup) -> str:
    base = f"The base model's loss is {_loss(evaluation.base_loss)}"
    if evaluation.start_loss is None:
        return base
    return f"{base}, and that of {_start(setup)} is {_loss(evaluation.start_loss)}"


def _start(setup: TrainingSetup) -> str:
    return "the adapter before" if setup.start is None else str(setup.start.ref)


def _loss(loss: float | None) -> str:
    return "not finite" if loss is None or not math.isfinite(loss) else f"{loss:.4f}"
