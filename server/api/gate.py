"""Gives each request an id, checks its key and limits its body. Plain ASGI; knows no endpoint."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters_store.outside_values import shown, whole_number
from server.api.error_body import ErrorBody
from server.db.audit_trail import Actor, act_as, address_of
from server.errors import (
    MissingScope,
    RequestTooLarge,
    Unavailable,
    UnsupportedEncoding,
    VerandahError,
)
from server.tenancy.keys import Keys, Run
from server.tenancy.principal import Principal
from server.tenancy.principal import Scope as NamedScope

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_DISCARD_FACTOR = 4  # times the limit: how much more of a body over it is read and dropped

_LOGGED_PATH = 200  # characters
_PIECE_BYTES = 8 * 1024  # of an upload
_ALL_BODIES = 256 * 2**20
_SMALL_BODY = 64 * 1024
_FORM = "application/x-www-form-urlencoded"
_FORM_BYTES = 64 * 1024  # one of nothing but separators takes 0.4 us for each of them
_UPLOADS = ("/v1/files", "/v1/adapters/import", "/console/data")

Describe = Callable[[Exception], ErrorBody]
Answered = Callable[[str, int], None]  # with the path and the status, 0 without an answer
NeededScope = Callable[[str, str], tuple[NamedScope, ...]]  # by method and path


class RequestIds:
    """Gives each request its `x-request-id`, and answers exceptions that nothing else caught. Logs
    each request at its end, and tells `answered` of it."""

    def __init__(
        self, app: ASGIApp, describe: Describe, answered: Answered = lambda *_: None
    ) -> None:
        self._app = app
        self._describe = describe
        self._answered = answered

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
            answer = self._describe(error)
            # A disk's fault is the operator's to mend. Its message says how, and a trace does not.
            ours = answer.code == "internal_error"
            log.error("request %s failed: %s", request_id, error, exc_info=error if ours else None)
            if not started:
                await answer.response()(scope, receive, send_named)
            elif not ended:  # Starlette raises after a whole answer too
                raise  # the server closes the connection: half an answer must not look whole
        finally:
            self._answered(scope["path"], status)
            _log_request(scope, status, time.monotonic() - began, request_id)


def _log_request(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    """The path as it was sent, so that it cannot forge lines, and without its query."""
    raw = cast(bytes, scope.get("raw_path") or b"")
    path = raw.decode("ascii", "backslashreplace")[:_LOGGED_PATH]
    code = status or "no answer"
    log.info("%s %s %s %.0f ms %s", scope["method"], path, code, 1000 * seconds, request_id)


class KeyCheck:
    """Refuses requests to /v1 without a known key or its scope, before the body is read."""

    def __init__(
        self, app: ASGIApp, keys: Keys, run: Run, needed: NeededScope, describe: Describe
    ) -> None:
        self._app = app
        self._keys = keys
        self._run = run
        self._needed = needed
        self._describe = describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            try:
                header = _header(scope, b"authorization")
                principal = await self._keys.principal(header, self._run)
                check_scope(principal, self._needed(scope["method"], scope["path"]))
            except VerandahError as error:
                return await self._describe(error).response()(scope, receive, send)
            scope["verandah.principal"] = principal
            act_as(actor_of(principal, scope))
        await self._app(scope, receive, send)


def actor_of(principal: Principal, scope: Scope) -> Actor:
    """Who acts with a key, and from where."""
    address = client_address(scope)
    return Actor(principal.name, principal.key, principal.user, principal.owner, address)


def client_address(scope: Scope) -> str:
    """The peer's, or what a trusted proxy said: uvicorn decides that."""
    return address_of((scope.get("client") or ("",))[0])


def check_scope(principal: Principal, needed: tuple[NamedScope, ...]) -> None:
    """Raise MissingScope unless the key has one of these scopes, or none is needed."""
    if needed and not any(map(principal.may, needed)):
        raise MissingScope(
            "You have insufficient permissions for this operation. Missing scopes: "
            f"{' or '.join(needed)}. Use a key that has it: `verandah keys list` shows the scopes"
        )


class BodyLimit:
    """Refuses bodies over a limit, of declared length or not, and compressed ones.

    Uploads have a limit of their own, and go to the disk. All other bodies are in memory, and their
    sum has a limit too. Small ones pass all the same: whoever holds many large ones must not keep
    others from a short question, and the number of connections bounds what small ones take.
    """

    def __init__(
        self, app: ASGIApp, describe: Describe, *, body_bytes: int, file_bytes: int
    ) -> None:
        self._app = app
        self._describe = describe
        self._body_bytes = body_bytes
        # Multipart framing and the other fields come on top of the file itself.
        self._upload_bytes = file_bytes + 64 * 1024
        self._in_memory = _InMemory(max(_ALL_BODIES, body_bytes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        uploads = scope["path"] in _UPLOADS
        limit, too_large = self._limit_of(scope, uploads)
        encoding = _header(scope, b"content-encoding") or "identity"
        if encoding.lower() != "identity":
            await _discard(receive, limit)
            unread = UnsupportedEncoding(
                f"content-encoding {shown(encoding)} is not read: send the body uncompressed"
            )
            return await self._refuse(unread, scope, receive, send)
        declared = _header(scope, b"content-length") or "0"
        if (whole_number(declared) or 0) > limit:
            if _header(scope, b"expect") is None:  # else the client waits for our word
                await _discard(receive, _DISCARD_FACTOR * limit)
            return await self._refuse(too_large, scope, receive, send)
        counted = _Counted(receive, limit, None if uploads else self._in_memory)
        try:
            await self._app(scope, counted, send)
        except _OverLimit as over:
            if not counted.complete:
                await _discard(receive, _DISCARD_FACTOR * limit)
            await self._refuse(too_large if over.own else _memory_full(), scope, receive, send)
        finally:
            self._in_memory.bytes -= counted.taken

    def _limit_of(self, scope: Scope, uploads: bool) -> tuple[int, RequestTooLarge]:
        """Only pages have forms; curl says so of all bodies, and the API says what is wrong."""
        kind = (_header(scope, b"content-type") or "").lower()
        if kind.startswith(_FORM) and scope["path"].startswith("/console/"):
            limit = min(_FORM_BYTES, self._body_bytes)
            what = f"the form is over the limit of {limit} bytes: write less into its fields"
            return limit, RequestTooLarge(what)
        limit = self._upload_bytes if uploads else self._body_bytes
        return limit, _too_large(uploads, limit)

    async def _refuse(
        self, error: VerandahError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        answer = self._describe(error).response()
        answer.headers["connection"] = "close"  # there may be more of the body
        await answer(scope, receive, send)


def _too_large(uploads: bool, limit: int) -> RequestTooLarge:
    kind = "file" if uploads else "request body"
    return RequestTooLarge(
        f"the {kind} is over the limit of {limit} bytes: send a smaller one, or start the "
        f"server with a larger {'--max-file-mb' if uploads else '--max-body-mb'}",
        param="file" if uploads else None,
    )


def _memory_full() -> Unavailable:
    return Unavailable("the server has too many large requests in hand: try again in a moment")


@dataclass
class _InMemory:
    """The bytes of all bodies in memory, and the most that there may be."""

    most: int
    bytes: int = 0


class _OverLimit(BaseException):
    """A body is over its own limit, or over what is left for all of them. A BaseException, so that
    no parser's `except` swallows it."""

    def __init__(self, own: bool) -> None:
        self.own = own


class _Counted:
    """A body as it comes. An upload comes in small pieces: reading a form of nasty parts takes a
    microsecond for each byte, and others have their turn in between."""

    def __init__(self, receive: Receive, limit: int, in_memory: _InMemory | None) -> None:
        self._receive = receive
        self._left = limit
        self._in_memory = in_memory
        self.taken = 0
        self.complete = False
        self._waiting: Message | None = None  # what was too long for one piece

    async def __call__(self) -> Message:
        if self._waiting is not None:
            await asyncio.sleep(0)
            return self._piece(self._waiting)
        message = await self._receive()
        if message["type"] == "http.request":
            self.complete = not message.get("more_body", False)
            size = len(message.get("body", b""))
            self._left -= size
            if self._left < 0:
                raise _OverLimit(own=True)
            if self._in_memory is not None:
                self._take(self._in_memory, size)
            else:
                return self._piece(message)
        return message

    def _piece(self, message: Message) -> Message:
        body: bytes = message.get("body", b"")
        if len(body) <= _PIECE_BYTES:
            self._waiting = None
            return message
        self._waiting = {**message, "body": body[_PIECE_BYTES:]}
        return {**message, "body": body[:_PIECE_BYTES], "more_body": True}

    def _take(self, memory: _InMemory, size: int) -> None:
        self.taken += size
        memory.bytes += size
        if self.taken > _SMALL_BODY and memory.bytes > memory.most:
            raise _OverLimit(own=False)


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
