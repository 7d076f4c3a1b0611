"""What a run tells its owner: figures, sentences, and why it failed. Pure."""

import math

import torch

from adapters_store.store_errors import StoreError
from server.errors import InvalidRequest, TrainingFailed, VerandahError
from server.jobs.queue.job import Figures
from server.training.run.trainer import Progress

_OVERFIT = 1.2  # below this, the score of a few held-out lines is mostly noise


def figures_of(progress: Progress) -> dict[str, float | int | str | None]:
    """A step's figures under the OpenAI API's names, and ours."""
    figures: dict[str, float | int | str | None] = {
        "step": progress.step,
        "total_steps": progress.total_steps,
        "epoch": round(progress.epoch, 4),
        "trained_tokens": progress.trained_tokens,
        "learning_rate": progress.learning_rate,
        "tokens_per_second": round(progress.tokens_per_s, 1),
        "seconds_left": round(progress.seconds_left, 1),
    }
    if progress.train:
        figures["train_loss"] = progress.train.loss
        figures["train_mean_token_accuracy"] = progress.train.accuracy
    if progress.valid:
        figures["valid_loss"] = progress.valid.loss
        figures["valid_mean_token_accuracy"] = progress.valid.accuracy
    return figures


def joined(before: Figures, progress: Progress) -> dict[str, float | int | str | None]:
    """A run's figures so far: the newest of each, and the best validation loss with its step.

    Step 0 is not among the best: it is what the job began with.
    """
    figures = {**before, **figures_of(progress)}
    if progress.valid is None or progress.step == 0:
        return figures
    best, loss = before.get("best_valid_loss"), progress.valid.loss
    if math.isfinite(loss) and (not isinstance(best, float) or loss < best):
        figures["best_valid_loss"], figures["best_step"] = loss, progress.step
        figures["scores_since_best"] = 0
    else:
        figures["scores_since_best"] = int(before.get("scores_since_best") or 0) + 1
    return figures


def checkpoint_metrics(figures: Figures) -> Figures:
    """The figures that the OpenAI API gives a checkpoint."""
    names = (
        "step",
        "train_loss",
        "train_mean_token_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
    )
    return {name: figures[name] for name in names if name in figures}


def overfitting(figures: Figures) -> str | None:
    """What to do better next time, if the score rose again; its best is what is published."""
    best, last = figures.get("best_valid_loss"), figures.get("valid_loss")
    if not isinstance(best, float) or not isinstance(last, float) or last < _OVERFIT * best:
        return None
    return (
        f"The validation loss was lowest at step {figures['best_step']} ({best:.4f}) and has risen "
        "since: fewer epochs or a lower learning rate may answer new questions better"
    )


def sentence(progress: Progress) -> str:
    """A step in words."""
    parts = [f"Step {progress.step}/{progress.total_steps}"]
    if progress.train:
        parts.append(f"training loss={progress.train.loss:.4f}")
    if progress.valid:
        parts.append(f"validation loss={progress.valid.loss:.4f}")
    return ": ".join([parts[0], ", ".join(parts[1:])]) if parts[1:] else parts[0]


def reason_of(error: Exception) -> tuple[str, str, str | None]:
    """Code, message and field of a failed job."""
    if isinstance(error, TrainingFailed):
        return error.code, str(error), None
    if isinstance(error, InvalidRequest):
        return "invalid_request", str(error), error.param
    if isinstance(error, torch.OutOfMemoryError):
        advice = "train again with a smaller max_tokens_per_batch or rank"
        return "out_of_memory", f"the accelerator's memory was not enough: {advice}", None
    if isinstance(error, VerandahError | StoreError):
        return "training_failed", str(error), None
    kind = type(error).__name__
    return "internal_error", f"the worker met a fault of its own ({kind}); see its log", None
