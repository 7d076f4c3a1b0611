"""Gives each request an id, checks its key and limits its size. Plain ASGI; knows no endpoint."""

import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import cast

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.error_body import ErrorBody
from server.errors import RequestTooLarge, Unauthorized
from server.tenancy.keys import Keys

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_DISCARD_FACTOR = 4  # times the limit: how much more of a body over it is read and dropped

_LOGGED_PATH = 200  # characters
_UPLOADS = ("/v1/files", "/v1/adapters/import")

Describe = Callable[[Exception], ErrorBody]


class RequestIds:
    """Gives each request its `x-request-id`, and answers exceptions that nothing else caught. Logs
    each request at its end."""

    def __init__(self, app: ASGIApp, describe: Describe) -> None:
        self._app = app
        self._describe = describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        sent_id = _header(scope, b"x-request-id") or ""
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else f"req_{secrets.token_hex(12)}"
        scope["verandah.request_id"] = request_id
        name = (b"x-request-id", request_id.encode())
        started = ended = False
        status, began = 0, time.monotonic()

        async def send_named(message: Message) -> None:
            nonlocal started, ended, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                message["headers"] = [*message.get("headers", ()), name]
            else:
                ended = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            log.exception("request %s failed", request_id)
            if not started:
                await self._describe(error).response()(scope, receive, send_named)
            elif not ended:  # Starlette raises after a whole answer too
                raise  # the server closes the connection: half an answer must not look whole
        finally:
            _log_request(scope, status, time.monotonic() - began, request_id)


def _log_request(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    """The path as it was sent, so that it cannot forge lines, and without its query."""
    raw = cast(bytes, scope.get("raw_path") or b"")
    path = raw.decode("ascii", "backslashreplace")[:_LOGGED_PATH]
    code = status or "no answer"
    log.info("%s %s %s %.0f ms %s", scope["method"], path, code, 1000 * seconds, request_id)


class KeyCheck:
    """Refuses requests to /v1 without a known key, before the body is read."""

    def __init__(self, app: ASGIApp, keys: Keys, describe: Describe) -> None:
        self._app = app
        self._keys = keys
        self._describe = describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            try:
                scope["verandah.owner"] = self._keys.owner(_header(scope, b"authorization"))
            except Unauthorized as error:
                return await self._describe(error).response()(scope, receive, send)
        await self._app(scope, receive, send)


class BodyLimit:
    """Refuses bodies over a limit, of declared length or not. Uploads have their own limit."""

    def __init__(
        self, app: ASGIApp, describe: Describe, *, body_bytes: int, file_bytes: int
    ) -> None:
        self._app = app
        self._describe = describe
        self._body_bytes = body_bytes
        # Multipart framing and the other fields come on top of the file itself.
        self._upload_bytes = file_bytes + 64 * 1024

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        uploads = scope["path"] in _UPLOADS
        limit = self._upload_bytes if uploads else self._body_bytes
        declared = _header(scope, b"content-length") or "0"
        if declared.isdecimal() and int(declared) > limit:
            await _discard(receive, _DISCARD_FACTOR * limit)
            return await self._refusal(uploads, limit)(scope, receive, send)
        counted = _Counted(receive, limit)
        try:
            await self._app(scope, counted, send)
        except _OverLimit:
            if not counted.complete:
                await _discard(receive, _DISCARD_FACTOR * limit)
            await self._refusal(uploads, limit)(scope, receive, send)

    def _refusal(self, uploads: bool, limit: int) -> Response:
        kind = "file" if uploads else "request body"
        error = RequestTooLarge(
            f"the {kind} is over the limit of {limit} bytes: send a smaller one, or start the "
            f"server with a larger {'--max-file-mb' if uploads else '--max-body-mb'}",
            param="file" if uploads else None,
        )
        return self._describe(error).response()


class _OverLimit(BaseException):
    """A body is over the limit. A BaseException, so that no parser's `except` swallows it."""


class _Counted:
    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._left = limit
        self.complete = False

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.complete = not message.get("more_body", False)
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise _OverLimit
        return message


async def _discard(receive: Receive, most: int) -> None:
    """Read on: a client that is still sending would see a reset connection, not the answer."""
    while most > 0:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        most -= len(message.get("body", b""))


def _header(scope: Scope, name: bytes) -> str | None:
    """The value of the first header of that name."""
    for key, value in scope["headers"]:
        if key == name:
            return cast(bytes, value).decode("latin-1")
    return None
