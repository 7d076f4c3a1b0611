"""The errors that the client raises on purpose, as one tree."""

import httpx


class ClientError(Exception):
    """Base of every error that this client raises on purpose."""


class ConnectionFailed(ClientError):
    """No server answers at that address."""


class ApiError(ClientError):
    """The server refused; `status` and `code` say how. Fields are as in the OpenAI API's errors."""

    def __init__(self, message: str, *, status: int, code: str | None, param: str | None) -> None:
        super().__init__(message)
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
