"""The errors that the client raises on purpose, as one tree."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx


class ClientError(Exception):
    """Base of every error that this client raises on purpose."""


class ConnectionFailed(ClientError):
    """No server answers at that address."""


class BadAddress(ClientError):
    """No request can be sent: the server's address, the key or the proxy cannot be used."""


class ApiError(ClientError):
    """The server refused; `status` and `code` say how. Fields are as in the OpenAI API's errors.

    `problems` are the wrong lines of a file, each with its `line`, its `reason`, and the
    field of the request that names the file (`param`).
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None,
        param: str | None,
        problems: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.problems = tuple(problems)
        self.status = status
        self.code = code
        self.param = param

    @classmethod
    def from_body(cls, status: int, body: object) -> "ApiError":
        """Read an error's document. A body of another form gives the status alone."""
        error = body.get("error") if isinstance(body, dict) else None
        if not isinstance(error, dict):
            return cls(f"the server answered {status}", status=status, code=None, param=None)
        return cls(
            str(error.get("message")),
            status=status,
            code=error.get("code"),
            param=error.get("param"),
            problems=error.get("problems") or (),
        )

    @classmethod
    def from_response(cls, response: httpx.Response) -> "ApiError":
        """Read a failed answer, whose body is complete."""
        try:
            body = response.json()
        except ValueError:
            body = None
        return cls.from_body(response.status_code, body)


class JobFailed(ClientError):
    """A training job ended without an adapter."""


class BadFolder(ClientError):
    """A local folder is not a checkpoint, or is not empty."""
