"""How a job is to train: its options, and their checks.

Knows no method and no trainer. None leaves a value to its measured default.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields

from adapters_store.outside_values import shown
from server.errors import InvalidRequest
from server.jobs.queue.method_spec import OPTIONS, MethodSpecs, spec_named
from server.refused_fields import nearest

DEFAULT_METHOD = "vera"
BASES = ("shared", "per-layer")
SPARSITIES = ("dense", "sqrt")
TARGET_SETS = ("all-linear", "attention")
SCHEDULES = ("cosine", "linear", "constant")
PUBLISH = ("if_better", "always")
MAX_RANK = 1024
MAX_SEED = 2**63 - 1  # what both databases hold
_MOST_NAMED = 8
_MODULE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")

_Problem = tuple[str, str]
"""An option, and what is wrong with it."""


@dataclass(frozen=True)
class TrainOptions:
    """The options of one job, checked; `check_method` checks those that only some methods have.

    `learning_rate_multiplier`, the OpenAI API's, is times the default rate; `learning_rate` is the
    rate itself. `targets` is a set by name, or suffixes of module paths (`q_proj`, `mlp.up_proj`).

    Some belong to some methods alone, and are refused for the rest: `trained` says which vectors
    learn ("d+b", "d" or "b" of VeRA; "B" or "A" of asymmetric-lora), `basis` whether VeRA's layers
    share random matrices, `d_initial` where VeRA's d begins, `sparsity` how thin RandLoRA's random
    matrices are ("dense"; s: one entry in s is not zero; "sqrt": s is the root of the base's
    width), and `alpha`, divided by the rank, scales both LoRAs.

    `early_stopping` ends the run after so many scores in a row without a better one, and keeps
    the best; `checkpoints` is how many versions are published on the way, at most. `publish` says
    what happens to an adapter that is worse than what it started from: "if_better" fails the job,
    "always" publishes it all the same.

    Raises:
        InvalidRequest: a value is out of range; `param` names it.
    """

    method: str = DEFAULT_METHOD
    rank: int | None = None
    targets: str | tuple[str, ...] | None = None
    learning_rate: float | None = None
    learning_rate_multiplier: float | None = None
    n_epochs: int | None = None
    batch_size: int | None = None
    warmup_ratio: float | None = None
    schedule: str | None = None
    max_grad_norm: float | None = None
    weight_decay: float | None = None
    trained: str | None = None
    basis: str | None = None
    sparsity: float | str | None = None
    alpha: float | None = None
    d_initial: float | None = None
    dropout: float | None = None
    seed: int | None = None
    validation_split: float | None = None
    max_tokens_per_batch: int | None = None
    early_stopping: int | None = None
    checkpoints: int | None = None
    publish: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.targets, str) and isinstance(self.targets, Sequence):
            object.__setattr__(self, "targets", tuple(self.targets))
        if problems := [*self._problems()]:
            raise _refusal(problems)

    def _problems(self) -> Iterator[_Problem]:
        if not isinstance(self.method, str):
            yield "method", f"method={shown(self.method)} is not a name, such as {DEFAULT_METHOD!r}"
        yield from self._one_of("basis", BASES)
        yield from self._one_of("schedule", SCHEDULES)
        yield from self._one_of("publish", PUBLISH)
        yield from self._whole("rank", 1, MAX_RANK)
        yield from self._whole("n_epochs", 1, 1000)
        yield from self._whole("batch_size", 1, 1024)
        yield from self._whole("seed", 0, MAX_SEED)
        yield from self._whole("max_tokens_per_batch", 1, 2**24)
        yield from self._whole("early_stopping", 1, 1000)
        yield from self._whole("checkpoints", 0, 10)
        yield from self._number("learning_rate", 1e-8, 1.0)
        yield from self._number("learning_rate_multiplier", 1e-3, 1e3)
        yield from self._number("warmup_ratio", 0.0, 1.0)
        yield from self._number("max_grad_norm", 1e-6, 1e6)
        yield from self._number("weight_decay", 0.0, 1.0)
        if self.sparsity not in SPARSITIES:
            yield from self._number(
                "sparsity", 1.01, 128.0, f", nor one of {', '.join(SPARSITIES)}"
            )
        yield from self._number("alpha", 1e-3, 1e6)
        yield from self._number("d_initial", -10.0, 10.0)
        yield from self._number("dropout", 0.0, 0.9)
        yield from self._number("validation_split", 0.0, 0.5)
        if self.learning_rate is not None and self.learning_rate_multiplier is not None:
            yield (
                "learning_rate_multiplier",
                "learning_rate and learning_rate_multiplier exclude each other; give one",
            )
        yield from self._check_targets()

    def to_json(self) -> str:
        """As a JSON object, without the options that were left open."""
        options = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(options, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "TrainOptions":
        """Read a JSON object; "auto" and null leave a value open.

        Raises:
            InvalidRequest: not an object, an unknown key, or a value out of range.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            message = f"the hyperparameters are not JSON: {error}"
            raise InvalidRequest(message, param="hyperparameters") from error
        if not isinstance(values, dict):
            message = "the hyperparameters are not a JSON object"
            raise InvalidRequest(message, param="hyperparameters")
        known = [field.name for field in fields(cls)]
        given = {key: value for key, value in values.items() if value not in ("auto", None)}
        unknown = [
            (key, f"unknown hyperparameter {shown(key)}{nearest(key, known)}")
            for key in values
            if key not in known
        ]
        if not unknown:
            return cls(**given)
        found = unknown[:_MOST_NAMED]
        found[-1] = (found[-1][0], f"{found[-1][1]}; known are {', '.join(known)}")
        try:
            cls(**{key: value for key, value in given.items() if key in known})
        except InvalidRequest as error:
            found.append((str(error.param), str(error)))
        raise _refusal(found)

    def _one_of(self, name: str, known: Sequence[str]) -> Iterator[_Problem]:
        value = getattr(self, name)
        if value is not None and value not in known:
            yield name, f"{name}={shown(value)} is not one of {', '.join(known)}"

    def _whole(self, name: str, low: int, high: int) -> Iterator[_Problem]:
        value = getattr(self, name)
        if value is not None and (type(value) is not int or not low <= value <= high):
            yield name, f"{name}={shown(value)} is not a whole number between {low} and {high}"

    def _number(
        self, name: str, low: float, high: float, otherwise: str = ""
    ) -> Iterator[_Problem]:
        value = getattr(self, name)
        if value is None:
            return
        if type(value) not in (int, float) or not low <= value <= high:  # NaN is not
            yield (
                name,
                f"{name}={shown(value)} is not a number between {low:g} and {high:g}{otherwise}",
            )

    def _check_targets(self) -> Iterator[_Problem]:
        if self.targets is None or self.targets in TARGET_SETS:
            return
        names = self.targets if isinstance(self.targets, tuple) else ()
        if not 0 < len(names) <= 64 or not all(
            isinstance(name, str) and _MODULE_NAME.fullmatch(name) for name in names
        ):
            yield (
                "targets",
                f"targets={shown(self.targets)} is neither {' nor '.join(TARGET_SETS)}, "
                "nor a list of 1 to 64 module names such as q_proj",
            )


def _refusal(problems: Sequence[_Problem]) -> InvalidRequest:
    """The error that names all of them; `param` is the first."""
    return InvalidRequest("; ".join(text for _, text in problems), param=problems[0][0])


def check_method(options: TrainOptions, specs: MethodSpecs) -> None:
    """Check that the method is one of `specs` and has what the options ask of it.

    Raises:
        InvalidRequest: it is unknown, or lacks an option or a choice; `param` names which.
    """
    spec = spec_named(specs, options.method)
    named = [name for name in OPTIONS if getattr(options, name) is not None]
    for name in named:
        if not spec.has(name):
            others = [it.name for it in specs.values() if it.has(name)]
            raise InvalidRequest(
                f"{name} is no option of method {spec.name!r}, only of {' and '.join(others)}: "
                "leave it out, or choose another method",
                param=name,
            )
    if options.trained is not None and options.trained not in spec.trained:
        raise InvalidRequest(
            f"trained={shown(options.trained)} is not one of {', '.join(spec.trained)}, which "
            f"method {spec.name!r} can train",
            param="trained",
        )
    for name in named:
        if not spec.variant(options.trained).has(name):
            raise InvalidRequest(
                f"{name} is no option of method {spec.name!r} with "
                f"trained={shown(options.trained)}: leave it out",
                param=name,
            )
        if name in spec.nonzero and getattr(options, name) == 0:
            raise InvalidRequest(
                f"with {name}=0 method {spec.name!r} would never learn: give another number, or "
                "leave it out",
                param=name,
            )
