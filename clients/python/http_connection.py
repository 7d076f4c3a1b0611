"""Sends requests to one server over httpx and reads its errors. Knows no endpoint."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import httpx

from .client_errors import ApiError, BadAddress, ConnectionFailed

_REMEDY = "write http://HOST:PORT"
_PAGE = 100


class HttpConnection:
    """Every method raises ConnectionFailed when no server answers, and ApiError when it refuses.

    An address without a scheme is one of HTTP. A server on this machine is asked without the
    environment's proxy, which could not reach it.

    Raises:
        BadAddress: the address, the key or the environment's proxy cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        timeout: httpx.Timeout,
        transport: httpx.BaseTransport | None,
    ) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise BadAddress("the API key has characters that no HTTP header can hold")
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._url = _address(base_url)
        self._timeout = timeout
        self.base_url = str(self._url).rstrip("/").removesuffix("/v1")
        try:
            self._http = httpx.Client(
                base_url=self.base_url,
                headers=headers,
                timeout=timeout,
                transport=transport,
                trust_env=not _on_this_machine(self._url.host),
            )
        except (ValueError, ImportError, httpx.InvalidURL) as error:
            raise BadAddress(
                f"the environment's proxy cannot be used ({error}): correct or unset HTTP_PROXY, "
                "HTTPS_PROXY and ALL_PROXY"
            ) from error

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.RequestError as error:
            raise self._failed(error) from error
        self._check(response)
        return response

    def json(self, method: str, path: str, **options: Any) -> Any:
        """The document that answers a request."""
        response = self.request(method, path, **options)
        try:
            return _document(response.text)
        except ValueError as error:
            raise ConnectionFailed(self._is_another(response)) from error

    def pages(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[Any]:
        """The documents of a list, fetched page by page."""
        params: dict[str, str | int] = {"limit": _PAGE, **(query or {})}
        while True:
            page = self.json("GET", path, params=params)
            yield from page["data"]
            if not page["has_more"]:
                return
            params["after"] = page["last_id"]

    @contextmanager
    def stream(
        self, path: str, body: Mapping[str, object] | None = None
    ) -> Iterator[httpx.Response]:
        """An answer whose content is read as it comes. `body` None: a GET, else a POST."""
        method = "GET" if body is None else "POST"
        try:
            with self._http.stream(method, path, json=body) as response:
                if not response.is_success:
                    response.read()
                self._check(response)
                yield response
        except httpx.RequestError as error:
            raise self._failed(error) from error

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

    def _check(self, response: httpx.Response) -> None:
        """Raise what the server says, or that it is another server than expected."""
        if response.is_success:
            return
        error = ApiError.from_response(response)
        has_path = self._url.path.rstrip("/") not in ("", "/v1")
        if error.code is None or (error.code == "unknown_url" and has_path):
            message = self._is_another(response)
            raise ApiError(message, status=error.status, code=error.code, param=error.param)
        raise error

    def _is_another(self, response: httpx.Response) -> str:
        request = f"{response.request.method} {response.request.url.path}"
        place = response.headers.get("location")
        moved = f" and redirects to {place}" if response.is_redirect and place else ""
        return (
            f"the server at {self.base_url} answered {response.status_code} to {request}{moved}, "
            f"not as Verandah does: check the address, which ends before /v1{self._proxy()}"
        )

    def _failed(self, error: httpx.RequestError) -> ConnectionFailed:
        reason = str(error) or type(error).__name__
        at = f"at {self.base_url}"
        if isinstance(error, httpx.ConnectTimeout):
            text = f"no server answers {at} within {self._timeout.connect:g} s: check the address"
        elif isinstance(error, httpx.TimeoutException):
            text = (
                f"the server {at} was silent for {self._timeout.read:g} s: it may be busy or "
                "stopped; try again later"
            )
        elif "SSL" in reason:
            text = (
                f"no safe connection to the server {at} ({reason}): write http:// if it has no "
                "certificate, or name its authority's in SSL_CERT_FILE"
            )
        elif isinstance(error, httpx.ConnectError | httpx.ProxyError):
            text = (
                f"no server answers {at} ({reason}): start one with `verandah serve`, or check "
                "the address"
            )
        else:
            text = f"the server {at} broke off its answer ({reason}): it may have stopped"
        return ConnectionFailed(text + self._proxy())

    def _proxy(self) -> str:
        """What to say where a proxy is between this client and the server."""
        host, proxies = self._url.host, getproxies()
        proxy = proxies.get(self._url.scheme) or proxies.get("all")
        if not proxy or _on_this_machine(host) or proxy_bypass(host):
            return ""
        return f". The environment's proxy was asked; NO_PROXY={host} leaves it out"


def path_of(*parts: str) -> str:
    """A path in which an id is one part, whatever it holds."""
    return "/".join([parts[0], *(quote(part, safe="@") for part in parts[1:])])


def _address(text: str) -> httpx.URL:
    """The address of a server. Raises BadAddress."""
    given = text.strip()
    try:
        url = httpx.URL(given if "://" in given else f"http://{given}")
    except httpx.InvalidURL as error:
        raise BadAddress(f"{text!r} is not a server's address ({error}): {_REMEDY}") from error
    if (
        url.scheme not in ("http", "https")
        or not url.host
        or url.host.isdecimal()
        or len(given.split()) != 1
    ):
        raise BadAddress(f"{text!r} is not a server's address: {_REMEDY}")
    if url.query or url.fragment:
        raise BadAddress(f"{text!r} is more than a server's address: {_REMEDY}")
    return url


def _on_this_machine(host: str) -> bool:
    return host in ("localhost", "::1", "0.0.0.0", "::") or host.startswith("127.")


def _document(text: str) -> Mapping[str, Any]:
    """Raises ValueError."""
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("the answer is JSON, and not an object")
    return document


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of an event stream. Answers hold U+2028 and others, where httpx would split too."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in lines)
