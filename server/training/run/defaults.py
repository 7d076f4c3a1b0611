"""What a job trains with where its options leave it open: every default in one place."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from server.jobs.queue.train_options import TrainOptions

# One seed for all adapters: those that share random matrices share the matrix products of a batch.
BASIS_SEED: Final = 0

# A file of 56 lines wants a tenth to a third of the rate that one of 42,061 does. Between the two
# nothing was measured; this many lines are 2 epochs of 128 steps.
LONG_FILE: Final = 4096


@dataclass(frozen=True)
class MethodDefaults:
    """A row of the table below: what one method, training this, begins with.

    `alpha_per_rank` times the rank is alpha. None: the method has no such option. `long_rate` is
    the learning rate of files of `LONG_FILE` lines and more, from the sweep on E2E NLG. `source`
    says who found the other numbers best, and on what. "Tried" is less than measured: a few rates,
    one file, one seed (docs/methods.md has the losses); ranks and alphas are the papers' or PEFT's.
    """

    method: str
    trained: str | None
    rank: int
    learning_rate: float
    long_rate: float
    source: str
    targets: str = "all-linear"
    basis: str | None = None
    sparsity: float | str | None = None
    alpha_per_rank: float | None = None
    d_initial: float | None = None


VERA: Final = MethodDefaults(
    "vera",
    "d+b",
    rank=64,
    learning_rate=3e-2,
    long_rate=1e-1,
    basis="shared",
    d_initial=0.1,
    source="measured on Porch, decision 5; the paper: rank 256, 1e-2",
)
# The first row of a method is its default. Edit docs/methods.md with it: a test compares them.
TABLE: Final = (
    VERA,
    replace(VERA, trained="d", d_initial=None, source="as d+b; tried on Porch, one file and seed"),
    replace(VERA, trained="b", long_rate=3e-1, source="as d+b; tried on Porch, one file and seed"),
    MethodDefaults(
        "randlora",
        None,
        rank=32,
        learning_rate=3e-4,
        long_rate=1e-3,
        sparsity="dense",
        source="tried on Porch, one file and seed; rank and rate are PEFT's; the paper: 1e-4",
    ),
    MethodDefaults(
        "asymmetric-lora",
        "B",
        rank=8,
        learning_rate=1e-3,
        long_rate=1e-2,
        alpha_per_rank=2.0,
        source="rate tried on Porch, one file and seed; the paper's code: rank 8, 4e-4",
    ),
    MethodDefaults(
        "asymmetric-lora",
        "A",
        rank=8,
        learning_rate=4e-4,
        long_rate=1e-3,
        alpha_per_rank=2.0,
        source="rate tried on Porch, one file and seed; it is that of the paper's code",
    ),
    MethodDefaults(
        "lora",
        None,
        rank=8,
        learning_rate=5e-4,
        long_rate=3e-3,
        alpha_per_rank=2.0,
        source="rate tried on Porch, one file and seed; LoRA's paper for GPT-2: rank 4, 2e-4",
    ),
)


def defaults_of(method: str, trained: str | None = None) -> MethodDefaults:
    """The row of a method; `trained` None: of what it trains when nothing is said."""
    return next(row for row in TABLE if row.method == method and trained in (None, row.trained))


@dataclass(frozen=True)
class TrainPlan:
    """A job's options with nothing left open; the same plan and data give the same adapter.

    `trained`, `basis`, `sparsity`, `alpha` and `d_initial` are None where the method has no such
    option. What a method starts from is in `TABLE`; what stands here is VeRA's, and common to all.

    VeRA's numbers are what scored best on lines held out of two files of 56 chats, on Porch, among
    those whose answers to other questions keep the file's style. Above rank 64 the score rose by
    0.01 nats; a rate of 0.01 took three times the steps, and one of 0.1 learnt the lines by heart.
    d_initial (0.01 to 0.1), weight decay, the schedule's shape and the gradient's limit made no
    difference that could be told from noise. Epochs and batch sizes were measured with VeRA alone.
    """

    seed: int  # of the data's order, the held-out split and dropout
    basis_seed: int = BASIS_SEED
    method: str = VERA.method
    rank: int = VERA.rank
    targets: str | Sequence[str] = VERA.targets
    learning_rate: float = VERA.learning_rate
    n_epochs: int = 6
    batch_size: int = 4
    warmup_ratio: float = 0.06
    schedule: str = "cosine"
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    trained: str | None = VERA.trained
    basis: str | None = VERA.basis
    sparsity: float | str | None = VERA.sparsity
    alpha: float | None = None
    d_initial: float | None = VERA.d_initial
    dropout: float = 0.0
    validation_split: float = 0.1
    max_tokens_per_batch: int = 2048  # positions of one forward pass; a larger batch takes several
    early_stopping: int | None = None  # scores in a row without a better one that end the run
    checkpoints: int = 2  # versions published on the way, at most
    publish: str = "if_better"
    evaluations: int = 10  # times that the held-out lines are scored during a run, at most

    def adapter_options(self) -> dict[str, float | str]:
        """What the method is told, and dropout. A sparsity of "sqrt" still needs the base."""
        named = ("trained", "basis", "sparsity", "alpha", "d_initial")
        given = {name: getattr(self, name) for name in named}
        return {name: value for name, value in given.items() if value is not None} | {
            "dropout": self.dropout
        }


def batch_size_for(lines: int) -> int:
    """4 up to some 300 lines, where it was measured; larger files are read in larger batches."""
    return min(32, max(4, lines // 64))


def epochs_for(lines: int) -> int:
    """320 lines read in all, which little files of any kind want; but 6 epochs up to 100 lines, and
    then 600 lines read, which files with something to know want; at least 2 epochs, at most 15."""
    little, longer = round(320 / max(1, lines)), round(600 / max(1, lines))
    return min(15, max(2, little, min(6, longer)))


def plan_for(options: TrainOptions, *, seed: int, max_rank: int, lines: int) -> TrainPlan:
    """Close what `options` leave open.

    Args:
        seed: the job's, which the queue took from the options, or drew.
        max_rank: the largest that is served; a default above it would train for nothing.
        lines: of the training file.
    """
    row = defaults_of(options.method, options.trained)
    rank = options.rank or min(row.rank, max_rank)
    plan = TrainPlan(
        seed=seed,
        method=row.method,
        rank=rank,
        targets=row.targets,
        learning_rate=row.learning_rate if lines < LONG_FILE else row.long_rate,
        n_epochs=epochs_for(lines),
        batch_size=batch_size_for(lines),
        trained=row.trained,
        basis=row.basis,
        sparsity=row.sparsity,
        alpha=None if row.alpha_per_rank is None else row.alpha_per_rank * rank,
        d_initial=row.d_initial,
    )
    asked: dict[str, Any] = {
        field.name: getattr(options, field.name)
        for field in fields(plan)
        if field.name != "seed" and getattr(options, field.name, None) is not None
    }
    if options.learning_rate_multiplier is not None:
        asked["learning_rate"] = plan.learning_rate * options.learning_rate_multiplier
    return replace(plan, **asked)
