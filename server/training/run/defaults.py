"""Turns a job's options into a plan: every default that its method does not give."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from server.adapters.methods.registry import METHODS, kind_named
from server.errors import InvalidRequest
from server.jobs.queue.method_spec import OPTIONS
from server.jobs.queue.train_options import TrainOptions

# One seed for all adapters: those that share random matrices share the matrix products of a batch.
BASIS_SEED: Final = 0

_DEFAULT: Final = METHODS[0].spec
_VARIANT: Final = _DEFAULT.variants[0]


@dataclass(frozen=True)
class TrainPlan:
    """A job's options with nothing left open; the same plan and data give the same adapter.

    `trained`, `basis`, `sparsity`, `alpha` and `d_initial` are None where the method has no such
    option. What a method starts with is in its own file (`MethodSpec`); the numbers here are the
    default method's, and common to all.

    VeRA's rank, d_initial (0.01 to 0.1), weight decay, schedule and limit of the gradient were
    tried on Porch: above rank 64 the score rose by 0.01 nats, and the others made no difference
    beyond the noise. Rates, epochs and batches come from a study of files of 10 to 1,000 lines of
    five kinds, on Porch and on a pretrained base of 135 M parameters. Both need the same, so no
    rule asks how large a base is. Epochs and batch sizes were measured with VeRA and LoRA alone.
    """

    seed: int  # of the data's order, the held-out split and dropout
    basis_seed: int = BASIS_SEED
    method: str = _DEFAULT.name
    rank: int = _VARIANT.rank
    targets: str | Sequence[str] = _VARIANT.targets
    learning_rate: float = _VARIANT.learning_rate
    n_epochs: int = 2
    batch_size: int = 4
    warmup_ratio: float = 0.06
    schedule: str = "cosine"
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    trained: str | None = _VARIANT.trained
    basis: str | None = _VARIANT.basis
    sparsity: float | str | None = _VARIANT.sparsity
    alpha: float | None = None
    d_initial: float | None = _VARIANT.d_initial
    dropout: float = 0.0
    validation_split: float = 0.1
    max_tokens_per_batch: int = 2048  # positions of one forward pass; a larger batch takes several
    early_stopping: int | None = None  # scores in a row without a better one that end the run
    checkpoints: int = 2  # versions published on the way, at most
    publish: str = "if_better"
    evaluations: int = 10  # times that the held-out lines are scored during a run, at most

    def adapter_options(self) -> dict[str, float | str]:
        """The method's options, still to be settled for the base's linears, and dropout."""
        options = {name: getattr(self, name) for name in OPTIONS}
        return {name: value for name, value in options.items() if value is not None} | {
            "dropout": self.dropout
        }


def batch_size_for(lines: int) -> int:
    """4 up to some 300 lines, where it was measured; larger files are read in larger batches."""
    return min(32, max(4, lines // 64))


def epochs_for(lines: int) -> int:
    """As many epochs as read 110 lines in all, but at least 2 and at most 8.

    With the methods' rates that is some 22 steps. More of them learn the lines by heart.
    """
    return min(8, max(2, round(110 / max(1, lines))))


def usual_rate(options: TrainOptions, lines: int) -> float:
    """The learning rate of a job with a file of so many lines that names no rate.

    It is the method's, but lower by as much as the job reads the file more often than usual.
    """
    usual = epochs_for(lines)
    rate = kind_named(options.method).spec.variant(options.trained).learning_rate
    return rate * min(1.0, usual / (options.n_epochs or usual))


def check_early_stopping(plan: TrainPlan, valid: int) -> None:
    """Raise InvalidRequest if a run of `valid` held-out lines could never stop early."""
    if plan.early_stopping is not None and not valid:
        raise InvalidRequest(
            "early_stopping needs held-out lines: give a validation_file, or a "
            "validation_split above 0",
            param="early_stopping",
        )


def plan_for(options: TrainOptions, *, seed: int, max_rank: int, lines: int) -> TrainPlan:
    """The plan of a job: what its options leave open takes the defaults.

    Args:
        seed: the job's. The queue took it from the options, or drew it.
        max_rank: the largest that is served. A default rank above it is lowered to it.
        lines: of the training file.
    """
    row = kind_named(options.method).spec.variant(options.trained)
    rank = options.rank or min(row.rank, max_rank)
    plan = TrainPlan(
        seed=seed,
        method=options.method,
        rank=rank,
        targets=row.targets,
        learning_rate=usual_rate(options, lines),
        n_epochs=epochs_for(lines),
        batch_size=batch_size_for(lines),
        trained=row.trained,
        basis=row.basis,
        sparsity=row.sparsity,
        alpha=None if row.alpha_per_rank is None else row.alpha_per_rank * rank,
        d_initial=row.d_initial,
    )
    named: dict[str, Any] = {
        field.name: getattr(options, field.name)
        for field in fields(plan)
        if field.name != "seed" and getattr(options, field.name, None) is not None
    }
    if options.learning_rate_multiplier is not None:
        named["learning_rate"] = plan.learning_rate * options.learning_rate_multiplier
    return replace(plan, **named)
