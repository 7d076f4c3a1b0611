"""The options of a training job, field by field, as the OpenAPI page tells them.

`server.jobs.queue.train_options.TrainOptions` checks them; here each has its values and a sentence.
"""

from typing import Any, Final

from server.jobs.queue.train_options import (
    BASES,
    MAX_RANK,
    MAX_SEED,
    PUBLISH,
    SCHEDULES,
    SPARSITIES,
    TARGET_SETS,
)

Schema = dict[str, Any]


def _whole(low: int, high: int, text: str) -> Schema:
    return _field(text, {"type": "integer", "minimum": low, "maximum": high})


def _number(low: float, high: float, text: str) -> Schema:
    return _field(text, {"type": "number", "minimum": low, "maximum": high})


def _word(words: tuple[str, ...], text: str) -> Schema:
    return _field(text, {"enum": list(words)})


def _field(text: str, *kinds: Schema) -> Schema:
    return {"anyOf": [*kinds, {"enum": ["auto", None]}], "description": text}


_SUFFIXES: Final = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_SPARSE: Final = {"type": "number", "minimum": 1.01, "maximum": 128}

OPTION_FIELDS: Final[Schema] = {
    "method": _field("The kind of adapter.", {"type": "string", "examples": ["vera", "lora"]}),
    "rank": _whole(1, MAX_RANK, "The rank."),
    "targets": _field("The linears: a set, or suffixes.", {"enum": list(TARGET_SETS)}, _SUFFIXES),
    "learning_rate": _number(1e-8, 1, "The peak rate."),
    "learning_rate_multiplier": _number(1e-3, 1e3, "Times the method's usual rate, instead of it."),
    "n_epochs": _whole(1, 1000, "How often each line is read."),
    "batch_size": _whole(1, 1024, "Lines in a step."),
    "warmup_ratio": _number(0, 1, "The part of the steps in which the rate rises."),
    "schedule": _word(SCHEDULES, "How the rate goes on after that."),
    "max_grad_norm": _number(1e-6, 1e6, "Where gradients are clipped."),
    "weight_decay": _number(0, 1, "As in AdamW."),
    "trained": _word(("d+b", "d", "b", "B", "A"), "What `vera` or `asymmetric-lora` trains."),
    "basis": _word(BASES, "Whether the layers of `vera` share random matrices."),
    "sparsity": _field("The matrices of `randlora`.", {"enum": list(SPARSITIES)}, _SPARSE),
    "alpha": _number(1e-3, 1e6, "The scale of `lora` and `asymmetric-lora` is alpha / rank."),
    "d_initial": _number(-10, 10, "The start of d in `vera`."),
    "dropout": _number(0, 0.9, "Of the adapter's input."),
    "seed": _whole(0, MAX_SEED, "What makes the training repeatable."),
    "validation_split": _number(0, 0.5, "The part held out if there is no validation file."),
    "max_tokens_per_batch": _whole(1, 2**24, "Positions of one forward pass."),
    "early_stopping": _whole(1, 1000, "Ends after so many scores in a row without a better one."),
    "checkpoints": _whole(0, 10, "Versions that are published on the way."),
    "publish": _word(PUBLISH, "Whether an adapter that got worse is published."),
}
_DRY_RUN: Final = {
    "type": "boolean",
    "description": "Queue nothing: only check the files and estimate the job.",
}

_OPENAIS: Final = ("n_epochs", "batch_size", "learning_rate_multiplier")

HYPERPARAMETERS: Final[Schema] = {
    "type": "object",
    "description": "The options of training: OpenAI's, and any of those in `verandah`.",
    "properties": {name: OPTION_FIELDS[name] for name in _OPENAIS},
}
VERANDAH: Final[Schema] = {
    "type": "object",
    "description": "All options of training, and `dry_run`.",
    "properties": {**OPTION_FIELDS, "dry_run": _DRY_RUN},
}
