"""A job's options in words, and as code that starts the same job. Knows no page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from server.jobs.queue.job import Job

_WORDS: Final[Mapping[str, str]] = {
    "method": "How the adapter changes the base",
    "rank": "Size of the change in each layer",
    "targets": "Which layers are changed",
    "learning_rate": "How far one step goes, at its peak",
    "learning_rate_multiplier": "Times the usual learning rate",
    "n_epochs": "Times through the file",
    "batch_size": "Lines in a step",
    "warmup_ratio": "Share of steps with a rising rate",
    "schedule": "How the rate falls after that",
    "max_grad_norm": "Longest step that is not shortened",
    "weight_decay": "Pull of the weights to zero",
    "trained": "Which vectors learn",
    "basis": "Random matrices of the layers",
    "sparsity": "Share of the random matrices that is zero",
    "alpha": "Scale of the change, times the rank",
    "d_initial": "Where the vector d begins",
    "dropout": "Share of values left out at random",
    "seed": "What makes the training repeatable",
    "validation_split": "Share of lines held out",
    "max_tokens_per_batch": "Tokens in one pass at most",
    "early_stopping": "Scores without a better one until it ends",
    "checkpoints": "Versions published on the way at most",
    "publish": "Whether a worse adapter is published",
}


@dataclass(frozen=True)
class Option:
    """One option of a job, as the API names it, with what it means."""

    name: str
    words: str
    value: str


def option_values(job: Job) -> dict[str, object]:
    """The options as they are used, or before that, as they were asked for."""
    asked: dict[str, object] = json.loads(job.hyperparameters.to_json())
    return asked | dict(job.plan or {}) | {"seed": job.seed}


def job_options(job: Job) -> Sequence[Option]:
    """All that is known of a job's options, the well-known first."""
    values = option_values(job)
    names = [name for name in _WORDS if name in values]
    names += [name for name in values if name not in _WORDS]
    return [Option(name, _WORDS.get(name, ""), shown_value(values[name])) for name in names]


def shown_value(value: object) -> str:
    """An option for people: 0.06666666666666667 is 0.06667."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def as_python(job: Job, url: str) -> str:
    """A program that starts the same job, with OpenAI's SDK."""
    asked: dict[str, Any] = json.loads(job.hyperparameters.to_json())
    asked.pop("seed", None)
    fields: dict[str, object] = {"model": job.model, "training_file": job.training_file}
    if job.validation_file:
        fields["validation_file"] = job.validation_file
    if job.suffix:
        fields["suffix"] = job.suffix
    fields["seed"] = job.seed
    if job.metadata:
        fields["metadata"] = dict(job.metadata)
    if asked:
        fields["extra_body"] = {"verandah": asked}
    lines = [f"    {name}={value!r}," for name, value in fields.items()]
    return "\n".join(
        [
            "from openai import OpenAI",
            "",
            f'client = OpenAI(base_url="{url}/v1", api_key="YOUR KEY")',
            "job = client.fine_tuning.jobs.create(",
            *lines,
            ")",
        ]
    )
