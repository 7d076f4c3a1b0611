"""What a run reports to its owner: metrics, sentences, and why it failed. Pure."""

import math
from dataclasses import replace

import torch

from adapters_store.store_errors import StoreError
from server.errors import InvalidRequest, TrainingFailed, VerandahError
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.run.trainer import Progress

_OVERFIT = 1.2  # below this, the loss of a few held-out lines is mostly noise


def metrics_of(progress: Progress) -> TrainingMetrics:
    """The metrics of one step."""
    train, valid = progress.train, progress.valid
    return TrainingMetrics(
        step=progress.step,
        total_steps=progress.total_steps,
        epoch=round(progress.epoch, 4),
        trained_tokens=progress.trained_tokens,
        learning_rate=progress.learning_rate,
        tokens_per_second=round(progress.tokens_per_s, 1),
        seconds_left=round(progress.seconds_left, 1),
        train_loss=train.loss if train else None,
        train_mean_token_accuracy=train.accuracy if train else None,
        valid_loss=valid.loss if valid else None,
        valid_mean_token_accuracy=valid.accuracy if valid else None,
    )


def updated(before: TrainingMetrics, progress: Progress) -> TrainingMetrics:
    """The metrics of a run so far: the newest of each, and the best validation loss."""
    step = metrics_of(progress)
    metrics = replace(before, **{k: v for k, v in vars(step).items() if v is not None})
    if progress.valid is None or progress.step == 0:
        return metrics
    best, loss = before.best_valid_loss, progress.valid.loss
    if math.isfinite(loss) and (best is None or loss < best):
        return replace(metrics, best_valid_loss=loss, best_step=progress.step, scores_since_best=0)
    return replace(metrics, scores_since_best=(before.scores_since_best or 0) + 1)


def checkpoint_metrics(metrics: TrainingMetrics) -> TrainingMetrics:
    """The metrics that the OpenAI API gives a checkpoint."""
    return TrainingMetrics(
        metrics.step,
        train_loss=metrics.train_loss,
        train_mean_token_accuracy=metrics.train_mean_token_accuracy,
        valid_loss=metrics.valid_loss,
        valid_mean_token_accuracy=metrics.valid_mean_token_accuracy,
    )


def overfitting(metrics: TrainingMetrics) -> str | None:
    """What to do better next time, if the validation loss rose again; the best is published."""
    best, last = metrics.best_valid_loss, metrics.valid_loss
    if best is None or last is None or last < _OVERFIT * best:
        return None
    return (
        f"The validation loss was lowest at step {metrics.best_step} ({best:.4f}) and has risen "
        "since. Fewer epochs or a lower learning rate may answer new questions better"
    )


def sentence(progress: Progress) -> str:
    """A step in words."""
    step = f"Step {progress.step}/{progress.total_steps}"
    losses = [
        f"{kind} loss={score.loss:.4f}"
        for kind, score in (("training", progress.train), ("validation", progress.valid))
        if score
    ]
    return f"{step}: {', '.join(losses)}" if losses else step


def reason_of(error: Exception) -> tuple[str, str, str | None]:
    """Code, message and field of a failed job."""
    if isinstance(error, TrainingFailed):
        return error.code, str(error), None
    if isinstance(error, InvalidRequest):
        return "invalid_request", str(error), error.param
    if isinstance(error, torch.OutOfMemoryError):
        advice = "train again with a smaller max_tokens_per_batch or rank"
        return "out_of_memory", f"the accelerator ran out of memory: {advice}", None
    if isinstance(error, VerandahError | StoreError):
        return "training_failed", str(error), None
    kind = type(error).__name__
    message = f"the worker failed with an internal error ({kind}): its log says more"
    return "internal_error", message, None
