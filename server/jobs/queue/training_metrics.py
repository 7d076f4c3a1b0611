"""What a training run measures, and how it is written as JSON. Knows no trainer."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CHECKPOINT_FIELDS = (
    "step",
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
)
"""Those that the OpenAI API gives a checkpoint, and a line of the file of results."""


@dataclass(frozen=True)
class TrainingMetrics:
    """The numbers of a run after `step` updates, the OpenAI API's under its names.

    None: not measured. NaN or infinite: measured, but not finite; in JSON it is null. Losses are in
    nats a token, accuracies are shares of tokens. `best_valid_loss` leaves out step 0, which comes
    before training; `scores_since_best` counts the validation losses after it.
    """

    step: int
    total_steps: int | None = None
    epoch: float | None = None
    trained_tokens: int | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    base_valid_loss: float | None = None
    best_valid_loss: float | None = None
    best_step: int | None = None
    scores_since_best: int | None = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "TrainingMetrics":
        """Read what any version wrote: names that this one does not know are left out."""
        names = {field.name for field in fields(cls)} & document.keys()
        values: dict[str, Any] = {name: document[name] for name in names}
        not_finite = {name: math.nan for name, value in values.items() if value is None}
        return cls(**values | not_finite)

    def to_document(self) -> dict[str, float | int | None]:
        """As JSON holds it, and the API shows it."""
        measured = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: finite(value) for name, value in measured.items()}

    def at_checkpoint(self) -> "TrainingMetrics":
        """Of these, `CHECKPOINT_FIELDS` alone."""
        return TrainingMetrics(**{name: getattr(self, name) for name in CHECKPOINT_FIELDS})

    @property
    def valid_loss_or_nan(self) -> float:
        """To be compared: a loss that was not measured is below and above nothing."""
        return math.nan if self.valid_loss is None else self.valid_loss


def finite(value: float | None) -> float | None:
    """The value; None in place of NaN and infinity, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None
