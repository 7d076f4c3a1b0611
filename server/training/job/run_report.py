"""What a run reports to its owner: metrics, sentences, and why it failed. Pure."""

import math
from dataclasses import replace

import torch

from adapters_store.store_errors import StoreError
from server.errors import InvalidRequest, TrainingFailed, VerandahError
from server.jobs.queue.training_metrics import TrainingMetrics

_OVERFIT = 1.2  # below this, the loss of a few held-out lines is mostly noise


def updated(before: TrainingMetrics, step: TrainingMetrics) -> TrainingMetrics:
    """The metrics of a run so far: the newest of each, and the best validation loss."""
    metrics = replace(before, **{k: v for k, v in vars(step).items() if v is not None})
    loss, best = step.valid_loss, before.best_valid_loss
    if loss is None or step.step == 0:
        return metrics
    if math.isfinite(loss) and (best is None or loss < best):
        return replace(metrics, best_valid_loss=loss, best_step=step.step, scores_since_best=0)
    return replace(metrics, scores_since_best=(before.scores_since_best or 0) + 1)


def overfitting(metrics: TrainingMetrics) -> str | None:
    """What to do better next time, if the validation loss rose again; the best is published."""
    best, last = metrics.best_valid_loss, metrics.valid_loss
    if best is None or last is None or last < _OVERFIT * best:
        return None
    return (
        f"The validation loss was lowest at step {metrics.best_step} ({best:.4f}) and has risen "
        "since. Fewer epochs or a lower learning rate may answer new questions better"
    )


def sentence(metrics: TrainingMetrics) -> str:
    step = f"Step {metrics.step}/{metrics.total_steps}"
    losses = [
        f"{kind} loss={loss:.4f}"
        for kind, loss in (("training", metrics.train_loss), ("validation", metrics.valid_loss))
        if loss is not None
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
    if isinstance(error, OSError) and error.filename is not None:
        advice = "the server's operator must look at its disk: the worker's log names the place"
        return "disk_failed", f"the server's disk failed ({error.strerror}): {advice}", None
    kind = type(error).__name__
    message = f"the worker failed with an internal error ({kind}): its log says more"
    return "internal_error", message, None
