"""Everything that can go wrong, as one tree.

    VerandahError
    ├── InvalidRequest             the caller's input is off; `param` names the field
    │   ├── ContextLengthExceeded  prompt plus answer do not fit the model's context
    │   ├── InvalidDataset         training lines are off; `problems` lists every one
    │   └── RequestTooLarge        a body or file is over its limit
    ├── Unauthorized               no key, or not a known one
    ├── NotFound                   the thing named does not exist, or is not the caller's
    │   └── ModelNotFound          no base or adapter of that id
    ├── Conflict                   the thing is not in a state that allows this
    │   └── LeaseLost              a worker speaks for a job that is no longer its own
    ├── QueueFull                  too many requests wait; `retry_after_s` says when to try again
    ├── DeadlineExceeded           the request's time ran out before it finished
    ├── Unavailable                the service is starting, draining, or has lost its engine
    ├── InvalidAdapter             an adapter that cannot be served: foreign, misshapen, not finite
    │   └── BasisMismatch          its random matrices are not the ones that this build makes
    ├── FileDamaged                an uploaded file is not what was uploaded any more
    ├── UnsupportedModel           a base model that this engine cannot run exactly
    └── TrainingFailed             a job ended without an adapter; `code` says why in one word

Raise the noun that fits; `server.app` alone turns nouns into HTTP statuses. A message names the
value at fault and the remedy. The store's own tree is `adapters_store.store_errors`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class VerandahError(Exception):
    """Base of every error raised on purpose by the server. Can be pickled, whatever it holds."""

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[VerandahError], args: tuple[object, ...], held: dict[str, object]) -> object:
    """An error from another process. Its constructor, which made `args`, is not called again."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(held)
    return error


class InvalidRequest(VerandahError):
    """The caller's input is off."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthExceeded(InvalidRequest):
    """Prompt plus answer do not fit the model's context."""


@dataclass(frozen=True)
class LineProblem:
    """What is wrong with one line (counted from 1) of an uploaded file."""

    line: int
    reason: str


class InvalidDataset(InvalidRequest):
    """Training lines are off; nothing was queued."""

    def __init__(
        self, message: str, problems: Sequence[LineProblem], *, param: str = "training_file"
    ) -> None:
        super().__init__(message, param=param)
        self.problems = tuple(problems)


class RequestTooLarge(InvalidRequest):
    """A body or file is over its limit."""


class Unauthorized(VerandahError):
    """No API key, or not a known one."""


class NotFound(VerandahError):
    """The thing named does not exist, or is not the caller's."""


class ModelNotFound(NotFound):
    """No base or adapter of that id."""


class Conflict(VerandahError):
    """The thing is not in a state that allows this."""


class LeaseLost(Conflict):
    """A worker speaks for a job that is no longer its own; it must stop and publish nothing."""


class QueueFull(VerandahError):
    """Too many requests wait."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(VerandahError):
    """The request's time ran out before it finished."""


class Unavailable(VerandahError):
    """The service is starting, draining, or has lost its engine."""


class InvalidAdapter(VerandahError):
    """An adapter that cannot be served."""


class BasisMismatch(InvalidAdapter):
    """The adapter's random matrices are not the ones that this build makes."""


class FileDamaged(VerandahError):
    """An uploaded file is not what was uploaded any more."""


class UnsupportedModel(VerandahError):
    """A base model that this engine cannot run exactly."""


class TrainingFailed(VerandahError):
    """A job ended without an adapter."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code
