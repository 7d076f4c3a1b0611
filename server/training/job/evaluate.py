"""Judge what a run has learnt, before anything of it is published: the losses, and words for them.

Knows no queue and no store. Lines are judged on that were held out; where none were, some of those
that the run learns from, which shows harm and nothing more.
"""

import math

from server.errors import TrainingFailed
from server.jobs.queue.evaluation import Evaluation
from server.jobs.queue.job import Checkpoint, Figures
from server.training.job.training_setup import TrainingSetup
from server.training.run.trainer import Progress

_SEEN = 32  # lines looked at where none is held out


def baseline(setup: TrainingSetup, first: Progress | None) -> Evaluation:
    """What the adapter's loss will be held against: the base's, and that of what it goes on from.

    Args:
        first: the score before training; None for a run that is under way, when what it went on
            from cannot be scored any more.
    """
    trainer = setup.trainer
    lines = setup.valid or setup.train[:_SEEN]
    begun = None
    if first is not None:
        begun = first.valid or trainer.score(lines)
    # A new adapter changes nothing yet: what is scored before its first step is the base.
    base = begun if begun and setup.start is None else trainer.score_base(lines)
    assert base is not None, "a run has lines"
    start_loss = begun.loss if begun and setup.start is not None else None
    return Evaluation(len(lines), bool(setup.valid), base.loss, start_loss)


def evaluated(
    before: Evaluation, setup: TrainingSetup, step: int, figures: Figures, last: Figures
) -> Evaluation:
    """The verdict on the adapter as it is now.

    Args:
        before: what `baseline` gave.
        step, figures: of the adapter as it is.
        last: the figures of the run's last step.
    """
    if before.held_out:
        return before.of(step, loss_of(figures), loss_of(last))
    score = setup.trainer.score(setup.train[:_SEEN])
    assert score is not None, "a run has lines"
    return before.of(step, score.loss, score.loss)


def diverged_evaluation(before: Evaluation, last: Figures) -> Evaluation:
    """The verdict on a run whose loss is no longer finite; an earlier state may have been good."""
    best, step = last.get("best_valid_loss"), last.get("best_step")
    if isinstance(best, float) and isinstance(step, int):
        return before.of(step, best, float("nan"))
    return before.of(None, float("nan"), float("nan"))


def announcement(evaluation: Evaluation, setup: TrainingSetup) -> str:
    """Before training: what is to be beaten, and on what."""
    if not evaluation.held_out:
        return (
            f"No line is held out, so the adapter is judged on {evaluation.lines} of those that it "
            "learns from, which shows harm, and not how it answers new questions: give a "
            f"validation_file, or a validation_split above 0. {_before(evaluation, setup)}"
        )
    lines = "line" if evaluation.lines == 1 else "lines"
    return f"To be judged on {evaluation.lines} held-out {lines}. {_before(evaluation, setup)}"


def comparison(evaluation: Evaluation, setup: TrainingSetup) -> str:
    """The losses before and after."""
    kind = "Validation loss" if evaluation.held_out else "Loss on lines that it learnt from"
    start = evaluation.start_loss
    between = "" if start is None else f", {_said(start)} of {_start(setup)}"
    step = evaluation.step
    early = evaluation.held_out and step is not None and step < setup.trainer.step
    at = f" at step {step} of {setup.trainer.step}, where it was lowest" if early else ""
    return (
        f"{kind}: {_said(evaluation.base_loss)} of the base model{between}, "
        f"{_said(evaluation.adapter_loss)} of the adapter{at}"
    )


def refusal(evaluation: Evaluation, setup: TrainingSetup) -> TrainingFailed | None:
    """Why the adapter must not be published, with what to do; None: it may."""
    if evaluation.verdict == "diverged":
        return TrainingFailed(
            f"the loss is no longer finite at the end. {comparison(evaluation, setup)}. "
            f"{advice(setup, evaluation.step)}",
            code="diverged",
        )
    if evaluation.verdict == "worse" and setup.plan.publish == "if_better":
        return TrainingFailed(
            "the adapter is worse than what it came from, and was not published. "
            f"{comparison(evaluation, setup)}. {advice(setup, evaluation.step)}",
            code="made_worse",
        )
    return None


def advice(setup: TrainingSetup, best_step: int | None) -> str:
    """What to do otherwise next time, in numbers."""
    plan, trainer = setup.plan, setup.trainer
    ways = [f"a learning_rate of {plan.learning_rate / 3:.1g} (it was {plan.learning_rate:g})"]
    per_epoch = trainer.total_steps // plan.n_epochs
    epochs = max(1, round((best_step or 0) / per_epoch))
    if best_step and best_step < trainer.step and epochs < plan.n_epochs:
        ways.append(f"n_epochs={epochs}, after which the loss was lowest")
    ways.append(f"more lines than {len(setup.train)}")
    return f"Try {', or '.join(ways)}"


def best_checkpoint(checkpoints: tuple[Checkpoint, ...]) -> str:
    """The best of the versions that a failed job leaves, in a sentence; none: no words."""
    scored = [(loss_of(one.metrics), one) for one in checkpoints if one.metrics.get("valid_loss")]
    if not scored:
        return ""
    loss, best = min(scored, key=lambda pair: pair[0])
    return f". Its best checkpoint, {best.model}, has {loss:.4f} (step {best.step})"


def loss_of(figures: Figures) -> float:
    """The validation loss; NaN stands for none, as it does where JSON had null."""
    loss = figures.get("valid_loss")
    return float(loss) if isinstance(loss, int | float) else float("nan")


def _before(evaluation: Evaluation, setup: TrainingSetup) -> str:
    told = f"The base model's loss is {_said(evaluation.base_loss)}"
    if evaluation.start_loss is None:
        return told
    return f"{told}, that of {_start(setup)} {_said(evaluation.start_loss)}"


def _start(setup: TrainingSetup) -> str:
    return "the adapter" if setup.start is None else str(setup.start.ref)


def _said(loss: float | None) -> str:
    return "not finite" if loss is None or not math.isfinite(loss) else f"{loss:.4f}"
