"""Asks the provider over HTTP, within bounds of time and bytes. A provider that hangs or sends
without end holds a sign-in for some seconds, and nothing else."""

import asyncio
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from adapters_store.outside_values import shown
from server.errors import SignInFailed, Unavailable
from server.tenancy.sign_in.addresses import is_this_machine

MOST_BYTES = 256 * 1024
_TIMEOUT_S = 10.0
_AT_ONCE = 16
_PATIENCE_S = 3.0


class BoundedHttp:
    """Sends requests whose answers are JSON objects. Follows no redirects."""

    def __init__(self, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._context: ssl.SSLContext | None = None

    async def object(
        self,
        url: str,
        *,
        form: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        bearer: str | None = None,
    ) -> Mapping[str, Any]:
        """The JSON object that answers; with a `form`, to a POST.

        Raises:
            Unavailable: no such answer came in time.
            SignInFailed: the provider refused, with 400 or 401.
        """
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        if bearer is not None:
            headers["authorization"] = f"Bearer {bearer}"
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._places.acquire()
        except TimeoutError:
            raise Unavailable("too many people sign in at once: try again in a moment") from None
        try:
            async with asyncio.timeout(self._timeout_s):
                status, body = await self._fetch(url, headers, form, auth)
        except TimeoutError:
            raise _silent(url, f"no whole answer in {self._timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
            raise _silent(url, str(error) or type(error).__name__) from error
        finally:
            self._places.release()
        return _read(url, status, body)

    async def _fetch(
        self,
        url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None,
        auth: tuple[str, str] | None,
    ) -> tuple[int, bytes]:
        if self._context is None:
            self._context = httpx.create_ssl_context()
        body = bytearray()
        async with (
            httpx.AsyncClient(
                verify=self._context,
                timeout=self._timeout_s,
                trust_env=not is_this_machine(urlsplit(url).hostname or ""),
            ) as client,
            client.stream(
                "GET" if form is None else "POST", url, headers=headers, data=form, auth=auth
            ) as response,
        ):
            async for piece in response.aiter_raw(16 * 1024):
                body += piece
                if len(body) > MOST_BYTES:
                    raise ValueError(f"the answer has more than {MOST_BYTES} bytes")
        return response.status_code, bytes(body)


def _read(url: str, status: int, body: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if status in (400, 401) and isinstance(document, dict):
        why = document.get("error_description") or document.get("error") or status
        raise SignInFailed(f"the provider refused the sign-in ({shown(why)}): begin again")
    if status != 200 or not isinstance(document, dict):
        raise _silent(url, f"status {status}, and {'a' if document else 'no'} JSON answer")
    return document


def _silent(url: str, why: str) -> Unavailable:
    return Unavailable(
        f"the sign-in provider does not answer as it should at {url.partition('?')[0]} ({why}): "
        "try again in a moment; keys go on working meanwhile"
    )
