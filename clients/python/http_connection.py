"""Sends requests to one server over httpx and reads its errors. Knows no endpoint."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from clients.python.client_errors import ApiError, ConnectionFailed


class HttpConnection:
    """Every method raises ConnectionFailed when no server answers, and ApiError when it refuses."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        timeout: httpx.Timeout,
        transport: httpx.BaseTransport | None,
    ) -> None:
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(
            base_url=self.base_url, headers=headers, timeout=timeout, transport=transport
        )

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise ApiError.from_response(response)
        return response

    def json(self, method: str, path: str, **options: Any) -> Any:
        """The document that answers a request."""
        return self.request(method, path, **options).json()

    @contextmanager
    def stream(
        self, path: str, body: Mapping[str, object] | None = None
    ) -> Iterator[httpx.Response]:
        """An answer whose content is read as it comes. `body` None: a GET, else a POST."""
        method = "GET" if body is None else "POST"
        try:
            with self._http.stream(method, path, json=body) as response:
                if response.is_error:
                    response.read()
                    raise ApiError.from_response(response)
                yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def documents(self, path: str, body: Mapping[str, object] | None = None) -> Iterator[Any]:
        """The documents in a stream of server-sent events. An error event raises ApiError."""
        with self.stream(path, body) as response:
            for line in _lines(response.iter_bytes()):
                data = line.removeprefix("data: ")
                if data == line:  # a comment, or another field of the event
                    continue
                if data == "[DONE]":
                    return
                document = json.loads(data)
                if "error" in document and "object" not in document:
                    raise ApiError.from_body(response.status_code, document)
                yield document

    def _unreachable(self, error: httpx.TransportError) -> ConnectionFailed:
        reason = str(error) or type(error).__name__
        return ConnectionFailed(
            f"no server answers at {self.base_url} ({reason}): start one with `verandah serve`"
        )


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of an event stream. Answers hold U+2028 and others, where httpx would split too."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in lines)
