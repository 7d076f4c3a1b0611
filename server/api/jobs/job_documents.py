"""Jobs, events and checkpoints as documents of the OpenAI API. Knows no requests."""

import json

from server.jobs.queue.job import Checkpoint, Event, Job
from server.jobs.queue.job_curve import Curve

Document = dict[str, object]

_OPENAI_HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")


def job_document(job: Job) -> Document:
    """A job. Fields that the OpenAI API lacks are in the object `verandah`.

    Options are as they were asked for, until a worker has settled what was left open.
    """
    options: Document = json.loads(job.hyperparameters.to_json()) | dict(job.plan or {})
    shown = dict.fromkeys(_OPENAI_HYPERPARAMETERS, "auto") | options
    ours = {key: value for key, value in options.items() if key not in _OPENAI_HYPERPARAMETERS}
    error = job.error
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "estimated_finish": job.estimated_finish,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": job.owner,
        "status": job.status,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": [job.result_file] if job.result_file else [],
        "trained_tokens": job.trained_tokens,
        "error": error and {"code": error.code, "message": error.message, "param": error.param},
        "hyperparameters": shown,
        "method": {"type": "supervised", "supervised": {"hyperparameters": shown}},
        "seed": job.seed,
        "integrations": [],
        "metadata": dict(job.metadata),
        "user_provided_suffix": job.suffix,
        "verandah": {
            **ours,
            "step": job.step,
            "appraisal": job.estimate and job.estimate.to_document(),
            "judgement": job.evaluation and job.evaluation.to_document(),
            "samples": [sample.to_document() for sample in job.samples or ()],
        },
    }


def event_document(event: Event) -> Document:
    """An event of a job."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": event.created_at,
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": event.data,
    }


def checkpoint_document(checkpoint: Checkpoint) -> Document:
    """A version that a job published; requests name it as their model."""
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": checkpoint.created_at,
        "fine_tuning_job_id": checkpoint.job,
        "fine_tuned_model_checkpoint": checkpoint.model,
        "step_number": checkpoint.step,
        "metrics": checkpoint.metrics.to_document(),
    }


def curve_document(job_id: str, curve: Curve) -> Document:
    """The metrics of a job, by step."""
    return {
        "object": "fine_tuning.job.metrics",
        "fine_tuning_job_id": job_id,
        "reported": curve.reported,
        "data": list(curve.points),
    }


def page_document(items: list[Document], has_more: bool) -> Document:
    """One page of a list."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }
