"""All errors that the server raises on purpose, as one tree. Knows no HTTP.

`server.app` alone maps errors to HTTP statuses. A message names the wrong value and the remedy. The
store has its own tree in `adapters_store.store_errors`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class VerandahError(Exception):
    """Base of every error raised on purpose by the server. Can be pickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(
    kind: type[VerandahError], args: tuple[object, ...], fields: dict[str, object]
) -> object:
    """An unpickled error. Its constructor is not called, because `args` are not its arguments."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class InvalidRequest(VerandahError):
    """The caller's input is wrong; `param` names the field."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownParameter(InvalidRequest):
    """The request has a field that this server does not know, and would have to ignore."""


class MissingParameter(InvalidRequest):
    """The request lacks a field that it needs."""


class ContextLengthExceeded(InvalidRequest):
    """Prompt plus answer do not fit the model's context."""


@dataclass(frozen=True)
class LineProblem:
    """What is wrong with one line (counted from 1) of an uploaded file, or, without a line, with
    all of it. `param` is the field of the request that names the file."""

    line: int | None
    reason: str
    param: str = "training_file"


class InvalidDataset(InvalidRequest):
    """Training lines are wrong; `problems` lists them. No job was queued.

    `count` is how many there are; of very many, not all are listed.
    """

    def __init__(
        self,
        message: str,
        problems: Sequence[LineProblem],
        *,
        param: str = "training_file",
        count: int | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.problems = tuple(problems)
        self.count = len(problems) if count is None else count


class InvalidJson(InvalidRequest):
    """A body is not JSON, or has more values or larger numbers than are read."""


class InvalidHttp(InvalidRequest):
    """What came over a connection is not HTTP."""


class UnsupportedEncoding(InvalidRequest):
    """A body is compressed."""


class RequestTooLarge(InvalidRequest):
    """A body or file is over its limit."""


class AddressTooLong(RequestTooLarge):
    """The path and query of a request are over their limit."""


class HeadTooLarge(RequestTooLarge):
    """The headers of a request are over their limit."""


class RequestTooSlow(VerandahError):
    """A client takes too long to send its request."""


class Unauthorized(VerandahError):
    """No API key, or an unknown one."""


class Forbidden(VerandahError):
    """The API key is right, and does not allow this."""


class SignInFailed(VerandahError):
    """A person could not sign in: the sign-in is forged, old or another's, or opens nothing."""


class MissingScope(Forbidden):
    """The API key lacks the scope of an operation."""


class NotFound(VerandahError):
    """The thing named does not exist, or is not the caller's."""


class ModelNotFound(NotFound):
    """No base or adapter of that id."""


class Conflict(VerandahError):
    """The thing is not in a state that allows this."""


class LeaseLost(Conflict):
    """A worker reports on a job that is no longer its own; it must stop and publish nothing."""


class QueueFull(VerandahError):
    """Too many requests wait; `retry_after_s` says when to try again."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(VerandahError):
    """An owner has sent too many requests or tokens; `kind` says which of the two.

    `retry_after_s` says when to try again. None: the request is larger than its limit.
    """

    def __init__(self, message: str, *, kind: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s


class QuotaExceeded(VerandahError):
    """An owner has, or trains, as much as it may: trying again is in vain until it has less."""


class DeadlineExceeded(VerandahError):
    """The request's time ran out before it finished."""


class Unavailable(VerandahError):
    """The service is starting, draining, or has lost its engine."""


class DiskFull(Unavailable):
    """There is no room on a disk of the server, so nothing was changed."""


class InvalidAdapter(VerandahError):
    """An adapter cannot be served: its base or shapes are wrong, or numbers are not finite."""


class AdapterNotFinite(InvalidAdapter):
    """An adapter's numbers, its update or its logits are not finite: trying again is in vain."""


class LogitsNotFinite(VerandahError):
    """The base model's logits are not finite for a prompt: trying again is in vain."""


class BasisMismatch(InvalidAdapter):
    """This build makes other random matrices than the adapter's."""


class FileDamaged(VerandahError):
    """An uploaded file has changed on the disk."""


class UnsupportedModel(VerandahError):
    """The engine cannot run this base model exactly."""


class FetchFailed(VerandahError):
    """A base model's file cannot be brought to this machine."""


class TrainingFailed(VerandahError):
    """A job ended without an adapter; `code` gives the reason."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code
