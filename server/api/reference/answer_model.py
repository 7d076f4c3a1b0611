"""How an endpoint's answers are told to the OpenAPI page. Checks and changes no answer.

The endpoints return plain dictionaries. To check each against its model would cost time in every
request, so a test does it instead: `tests/fuzz/schema.py`.
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

Responses = dict[int | str, dict[str, Any]]


class AnswerModel(BaseModel):
    """A JSON object in an answer."""

    # Only the page needs them built.
    model_config = ConfigDict(defer_build=True)


class FileProblem(AnswerModel):
    """What is wrong with a training file, or with one of its lines."""

    line: int | None = Field(
        description="The line, counted from 1. Null: the whole file.", examples=[3]
    )
    reason: str = Field(description="What is wrong, and what to write instead.")
    param: str = Field(description="The field that names the file.", examples=["training_file"])


class ErrorDetail(AnswerModel):
    """What went wrong."""

    message: str = Field(
        description="What is wrong, and what to do.",
        examples=["the model 'pirat' does not exist or is not yours"],
    )
    type: str = Field(
        description="`invalid_request_error`, `rate_limit_error` or `server_error`.",
        examples=["invalid_request_error"],
    )
    param: str | None = Field(description="The field at fault, if one is.", examples=["model"])
    code: str = Field(description="The kind of error in one word.", examples=["model_not_found"])
    problems: list[FileProblem] = Field(
        default=[], description="Only for a training file: its wrong lines."
    )


class ErrorAnswer(AnswerModel):
    """Every error, in the OpenAI API's form."""

    error: ErrorDetail = Field(description="What went wrong.")


# Of each status: what it means, and the code and message of an example.
_FAILURES: Final[Mapping[int, tuple[str, str, str]]] = {
    400: (
        "A field is unknown, missing or wrong: `param` names it. Or the body is not JSON.",
        "unknown_parameter",
        "the query parameter 'limits' is unknown",
    ),
    401: ("The API key is missing or wrong.", "invalid_api_key", "the API key is wrong"),
    403: (
        "The API key is right, and does not allow this.",
        "missing_scope",
        "You have insufficient permissions for this operation. Missing scopes: files.",
    ),
    404: (
        "There is no such thing, or it is not yours.",
        "model_not_found",
        "the model 'pirat' does not exist or is not yours",
    ),
    408: ("The request did not arrive in time.", "request_too_slow", "the body took too long"),
    409: (
        "The thing is not in a state that allows this.",
        "conflict",
        "job 'ftjob-1' is already cancelled",
    ),
    413: ("The body or the file is too large.", "request_too_large", "the file is over the limit"),
    414: ("The path and query are too long.", "address_too_long", "the address is over the limit"),
    415: (
        "The body is compressed in a way that is not read.",
        "unsupported_encoding",
        "content-encoding 'br' is not read: send the body uncompressed",
    ),
    429: (
        "Too many requests run and wait, or too many streams or exports are open.",
        "queue_full",
        "too many requests wait: try again later",
    ),
    431: ("The headers are too large.", "headers_too_large", "the headers are over the limit"),
    500: (
        "The server failed, or what it has stored is damaged: the message or the log says why.",
        "internal_error",
        "the server failed on this request: its log says why",
    ),
    503: (
        "The server cannot do this now: the message says what is missing.",
        "unavailable",
        "the engine is being started again: try again in a few seconds",
    ),
    504: ("The answer was not ready in time.", "deadline_exceeded", "the request took too long"),
}
_PARAMS: Final = {400: "limits", 404: "model", 413: "file"}
_RETRY: Final = {"Retry-After": ("After how many seconds to try again.", "integer")}
_HEADERS: Final[Mapping[int, Mapping[str, tuple[str, str]]]] = {
    401: {"WWW-Authenticate": ("Always `Bearer`.", "string")},
    429: _RETRY,
    503: _RETRY,
}
EVERYWHERE: Final = (400, 408, 413, 414, 415, 431, 500, 503)
"""What any request may be answered: most of it is decided before an endpoint is looked for."""


def failures(*statuses: int) -> Responses:
    """Errors of these statuses, for a route's `responses`."""
    return {status: _failure(status) for status in statuses}


def _failure(status: int) -> dict[str, Any]:
    meaning, code, message = _FAILURES[status]
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {
        "message": message,
        "type": "rate_limit_error" if status == 429 else kind,
        "param": _PARAMS.get(status),
        "code": code,
    }
    content = {"schema": reference("ErrorAnswer"), "example": {"error": error}}
    told: dict[str, Any] = {"description": meaning, "content": {"application/json": content}}
    headers = {
        name: {"description": text, "schema": {"type": kind}}
        for name, (text, kind) in _HEADERS.get(status, {}).items()
    }
    return told | {"headers": headers} if headers else told


def answers(*models: type[AnswerModel], fails: tuple[int, ...] = ()) -> Responses:
    """A route whose answer is one of these models, for its `responses`."""
    schemas = [reference(model.__name__) for model in models]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    told = {
        "description": _first_line(models[0]),
        "content": {"application/json": {"schema": schema}},
    }
    return {200: told, **failures(*fails)}


def streamed(responses: Responses, *items: type[AnswerModel], example: str) -> Responses:
    """The same, and server-sent events whose data are such items."""
    names = [*(item.__name__ for item in items), "ErrorAnswer"]
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [reference(name) for name in names]},
    }
    events = {
        # Of one event. A reader of OpenAPI 3.1 does not know it, and shows the example.
        "itemSchema": {
            "type": "object",
            "properties": {"data": {"anyOf": [{"const": "[DONE]"}, data]}},
            "required": ["data"],
        },
        "example": example,
    }
    whole = responses[200]
    content = whole["content"] | {"text/event-stream": events}
    return responses | {200: whole | {"content": content}}


def raw(
    media_type: str, description: str, *, fails: tuple[int, ...] = (), text: bool = False
) -> Responses:
    """A route whose answer is bytes, or text, of that type."""
    schema = {"type": "string"} if text else {"type": "string", "format": "binary"}
    told = {"description": description, "content": {media_type: {"schema": schema}}}
    return {200: told, **failures(*fails)}


def reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _first_line(model: type[AnswerModel]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]
