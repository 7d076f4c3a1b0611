"""Judge what a run has learnt, before anything of it is published: the losses, and words for them.

Knows no queue and no store. Lines are judged on that were held out; where none were, some of those
that the run learns from, which shows harm and nothing more.
"""

import math

from server.errors import TrainingFailed
from server.jobs.queue.job import Checkpoint, Figures
from server.jobs.queue.judgement import Judgement
from server.training.job.lesson import Lesson
from server.training.run.trainer import Progress

_SEEN = 32  # lines looked at where none is held out


def losses_to_beat(lesson: Lesson, first: Progress | None) -> Judgement:
    """What the adapter's loss will be held against: the base's, and that of what it goes on from.

    Args:
        first: the score before training; None for a run that is under way, when what it went on
            from cannot be scored any more.
    """
    trainer = lesson.trainer
    lines = lesson.valid or lesson.train[:_SEEN]
    begun = None
    if first is not None:
        begun = first.valid or trainer.score(lines)
    # A new adapter changes nothing yet: what is scored before its first step is the base.
    base = begun if begun and lesson.start is None else trainer.score_base(lines)
    assert base is not None, "a run has lines"
    start_loss = begun.loss if begun and lesson.start is not None else None
    return Judgement(len(lines), bool(lesson.valid), base.loss, start_loss)


def judged(
    before: Judgement, lesson: Lesson, step: int, figures: Figures, last: Figures
) -> Judgement:
    """The verdict on the adapter as it is now.

    Args:
        before: what `losses_to_beat` gave.
        step, figures: of the adapter as it is.
        last: the figures of the run's last step.
    """
    if before.held_out:
        return before.of(step, loss_of(figures), loss_of(last))
    score = lesson.trainer.score(lesson.train[:_SEEN])
    assert score is not None, "a run has lines"
    return before.of(step, score.loss, score.loss)


def diverged(before: Judgement, last: Figures) -> Judgement:
    """The verdict on a run whose loss is no longer finite; an earlier state may have been good."""
    best, step = last.get("best_valid_loss"), last.get("best_step")
    if isinstance(best, float) and isinstance(step, int):
        return before.of(step, best, float("nan"))
    return before.of(None, float("nan"), float("nan"))


def announcement(judgement: Judgement, lesson: Lesson) -> str:
    """Before training: what is to be beaten, and on what."""
    if not judgement.held_out:
        return (
            f"No line is held out, so the adapter is judged on {judgement.lines} of those that it "
            "learns from, which shows harm, and not how it answers new questions: give a "
            f"validation_file, or a validation_split above 0. {_before(judgement, lesson)}"
        )
    lines = "line" if judgement.lines == 1 else "lines"
    return f"To be judged on {judgement.lines} held-out {lines}. {_before(judgement, lesson)}"


def comparison(judgement: Judgement, lesson: Lesson) -> str:
    """The losses before and after."""
    kind = "Validation loss" if judgement.held_out else "Loss on lines that it learnt from"
    start = judgement.start_loss
    between = "" if start is None else f", {_said(start)} of {_start(lesson)}"
    step = judgement.step
    early = judgement.held_out and step is not None and step < lesson.trainer.step
    at = f" at step {step} of {lesson.trainer.step}, where it was lowest" if early else ""
    return (
        f"{kind}: {_said(judgement.base_loss)} of the base model{between}, "
        f"{_said(judgement.adapter_loss)} of the adapter{at}"
    )


def refusal(judgement: Judgement, lesson: Lesson) -> TrainingFailed | None:
    """Why the adapter must not be published, with what to do; None: it may."""
    if judgement.verdict == "diverged":
        return TrainingFailed(
            f"the loss is no longer finite at the end. {comparison(judgement, lesson)}. "
            f"{advice(lesson, judgement.step)}",
            code="diverged",
        )
    if judgement.verdict == "worse" and lesson.plan.publish == "if_better":
        return TrainingFailed(
            "the adapter is worse than what it came from, and was not published. "
            f"{comparison(judgement, lesson)}. {advice(lesson, judgement.step)}",
            code="made_worse",
        )
    return None


def advice(lesson: Lesson, best_step: int | None) -> str:
    """What to do otherwise next time, in numbers."""
    plan, trainer = lesson.plan, lesson.trainer
    ways = [f"a learning_rate of {plan.learning_rate / 3:.1g} (it was {plan.learning_rate:g})"]
    per_epoch = trainer.total_steps // plan.n_epochs
    epochs = max(1, round((best_step or 0) / per_epoch))
    if best_step and best_step < trainer.step and epochs < plan.n_epochs:
        ways.append(f"n_epochs={epochs}, after which the loss was lowest")
    ways.append(f"more lines than {len(lesson.train)}")
    return f"Try {', or '.join(ways)}"


def best_kept(checkpoints: tuple[Checkpoint, ...]) -> str:
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


def _before(judgement: Judgement, lesson: Lesson) -> str:
    told = f"The base model's loss is {_said(judgement.base_loss)}"
    if judgement.start_loss is None:
        return told
    return f"{told}, that of {_start(lesson)} {_said(judgement.start_loss)}"


def _start(lesson: Lesson) -> str:
    return "the adapter" if lesson.start is None else str(lesson.start.ref)


def _said(loss: float | None) -> str:
    return "not finite" if loss is None or not math.isfinite(loss) else f"{loss:.4f}"
