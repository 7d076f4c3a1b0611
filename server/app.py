"""The HTTP application: its routes and layers, and each error's status. Knows no settings."""

import errno
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from adapters_store import disk, store_errors
from server import errors
from server.api import ops
from server.api.adapters import (
    adapter_endpoints,
    analysis_endpoints,
    held_adapter_endpoints,
    model_endpoints,
    porting_endpoints,
    share_endpoints,
)
from server.api.adapters.adapter_census import AdapterCensus
from server.api.app_services import Services
from server.api.completions import chat_completion, text_completion
from server.api.completions.delivery import StreamWaker
from server.api.completions.fast_path import FastPath, FastRoute
from server.api.cross_origin import CrossOrigin
from server.api.error_body import ErrorBody
from server.api.gate import BodyLimit, KeyCheck, RequestIds
from server.api.head_requests import HeadRequests
from server.api.jobs import (
    file_endpoints,
    file_line_endpoints,
    job_endpoints,
    job_event_endpoints,
    job_request,
)
from server.api.operation_scopes import OperationScopes
from server.api.organization import (
    admin_key_endpoints,
    audit_endpoints,
    key_endpoints,
    limit_use_endpoints,
    member_endpoints,
    project_endpoints,
    rate_limit_endpoints,
    service_account_endpoints,
    usage_endpoints,
    user_endpoints,
)
from server.api.rate_check import RateCheck
from server.api.reference.answer_model import EVERYWHERE, failures
from server.api.reference.openapi_document import openapi_document
from server.api.sign_in import sign_in_endpoints
from server.console.console_gate import ConsoleGate
from server.console.data.recent_checks import RecentChecks
from server.console.rendering import Templates
from server.console.site import add_console
from server.db.audit_trail import acting
from server.refused_fields import refusal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _HttpError:
    status: int
    code: str
    type: str = "invalid_request_error"
    retry: bool = True  # False tells the OpenAI SDKs, which retry 409 and 5xx, not to


# The nearest class among an error's bases counts.
_HTTP_ERRORS: Mapping[type[Exception], _HttpError] = {
    errors.InvalidRequest: _HttpError(400, "invalid_value"),
    errors.MissingParameter: _HttpError(400, "missing_required_parameter"),
    errors.UnknownParameter: _HttpError(400, "unknown_parameter"),
    errors.ContextLengthExceeded: _HttpError(400, "context_length_exceeded"),
    errors.InvalidDataset: _HttpError(400, "invalid_training_file"),
    errors.InvalidJson: _HttpError(400, "invalid_json"),
    errors.InvalidHttp: _HttpError(400, "invalid_http"),
    errors.RequestTooSlow: _HttpError(408, "request_too_slow"),
    errors.RequestTooLarge: _HttpError(413, "request_too_large"),
    errors.AddressTooLong: _HttpError(414, "address_too_long"),
    errors.UnsupportedEncoding: _HttpError(415, "unsupported_encoding"),
    errors.HeadTooLarge: _HttpError(431, "headers_too_large"),
    errors.Unauthorized: _HttpError(401, "invalid_api_key"),
    errors.Forbidden: _HttpError(403, "insufficient_permissions"),
    errors.SignInFailed: _HttpError(403, "sign_in_failed"),
    errors.MissingScope: _HttpError(403, "missing_scope"),
    errors.NotFound: _HttpError(404, "not_found"),
    errors.ModelNotFound: _HttpError(404, "model_not_found"),
    errors.Conflict: _HttpError(409, "conflict", retry=False),
    errors.QueueFull: _HttpError(429, "queue_full", "rate_limit_error"),
    errors.RateLimited: _HttpError(429, "rate_limit_exceeded", "requests"),
    errors.QuotaExceeded: _HttpError(429, "insufficient_quota", "insufficient_quota", retry=False),
    errors.DeadlineExceeded: _HttpError(504, "deadline_exceeded", "server_error", retry=False),
    errors.Unavailable: _HttpError(503, "unavailable", "server_error"),
    errors.InvalidAdapter: _HttpError(400, "invalid_adapter"),
    errors.AdapterNotFinite: _HttpError(400, "adapter_not_finite"),
    errors.LogitsNotFinite: _HttpError(500, "logits_not_finite", "server_error", retry=False),
    store_errors.AdapterNotFound: _HttpError(404, "model_not_found"),
    store_errors.InvalidName: _HttpError(400, "invalid_value"),
    store_errors.InvalidCheckpoint: _HttpError(400, "invalid_adapter"),
    errors.FileDamaged: _HttpError(500, "file_damaged", "server_error", retry=False),
    errors.UnsupportedModel: _HttpError(500, "unsupported_model", "server_error", retry=False),
    store_errors.AdapterCorrupt: _HttpError(500, "adapter_corrupt", "server_error", retry=False),
}

_DISK_FAULTS = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ELOOP, errno.EEXIST),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EXDEV),
)
_LONGEST_MESSAGE, _LONGEST_NAME = 10_000, 200
_RETRY_AFTER_S = 3  # for what is being mended: an engine that starts again, a locked database
_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed"}
_FORM_REMEDY = (
    "send multipart/form-data with its boundary: files with a filename, and at most 1000 other "
    "fields of 1 MiB each, with names of under 4 KiB"
)


def describe(error: Exception) -> ErrorBody:
    """The HTTP answer for an error. An unknown error's text is not shown: it may hold internals."""
    if isinstance(error, OSError):
        error = _disk_fault(error)
    if isinstance(error, HTTPException) and error.status_code == 400:
        detail = str(error.detail).rstrip(".")
        error = errors.InvalidRequest(f"the form cannot be read ({detail}); {_FORM_REMEDY}")
    known = next((_HTTP_ERRORS[base] for base in type(error).__mro__ if base in _HTTP_ERRORS), None)
    if known is None:
        message = "the server failed on this request: its log says why"
        return ErrorBody(500, "server_error", "internal_error", message)
    headers = {} if known.retry else {"x-should-retry": "false"}
    if isinstance(error, errors.QueueFull):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    kind = known.type
    if isinstance(error, errors.RateLimited):
        kind = error.kind
        if error.retry_after_s is None:
            headers["x-should-retry"] = "false"
        else:
            headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, errors.Unavailable):
        headers["retry-after"] = str(_RETRY_AFTER_S)
    if isinstance(error, errors.Unauthorized):
        headers["www-authenticate"] = "Bearer"
    param = error.param if isinstance(error, errors.InvalidRequest) else None
    if known.code == "model_not_found":
        param = "model"
    problems = error.problems if isinstance(error, errors.InvalidDataset) else ()
    message, param = str(error)[:_LONGEST_MESSAGE], param and param[:_LONGEST_NAME]
    return ErrorBody(known.status, kind, known.code, message, param, headers, problems)


def _disk_fault(error: OSError) -> Exception:
    """What the system says of a file or folder, with the remedy; else the error itself."""
    if disk.is_full(error):
        return errors.DiskFull(
            "the server's disk is full, so nothing was saved: delete files or adapters, or try "
            "later"
        )
    if error.errno not in _DISK_FAULTS or error.filename is None:
        return error
    path = error.filename if error.filename2 is None else f"{error.filename} or {error.filename2}"
    return errors.Unavailable(
        f"the server cannot use {path} ({error.strerror}), so nothing was saved: restore it, and "
        "make it writable for the server"
    )


def _known(_: Request, error: Exception) -> Response:
    return describe(error).response()


def _http(request: Request, error: Exception) -> Response:
    failed, path = cast(HTTPException, error), request.url.path[:_LONGEST_NAME]
    if failed.status_code == 400:
        return describe(failed).response()
    headers = dict(failed.headers or {})
    if failed.status_code == 405:
        headers = {"allow": _allowed(request.url.path) or "GET, HEAD"}
    messages = {
        404: f"there is no {request.method} {path}: GET /docs lists the endpoints",
        405: f"{request.method} is not allowed on {path}",
    }
    return ErrorBody(
        failed.status_code,
        "invalid_request_error",
        _HTTP_CODES.get(failed.status_code, "invalid_request"),
        messages.get(failed.status_code, str(failed.detail)),
        headers=headers,
    ).response()


def _allowed(path: str) -> str:
    """The methods of a path, for an `Allow` header. Starlette names those of one route alone."""
    routes = [route for module in _ENDPOINTS for route in module.router.routes]
    found = [route for route in cast(list[APIRoute], routes) if route.path_regex.match(path)]
    # A path without parameters is a thing of its own, as in the OpenAPI document.
    found = [route for route in found if route.path == path] or found
    methods = {method for route in found for method in route.methods or ()}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def _invalid(request: Request, error: Exception) -> Response:
    """FastAPI's own check of a body, a form or a query has failed."""
    problems = cast(RequestValidationError, error).errors()
    parts = [it.field_info.annotation for it in request.scope["route"].dependant.body_params]
    models = [it for it in parts if isinstance(it, type) and issubclass(it, BaseModel)]
    return describe(refusal(problems, next(iter(models), None))).response()


_ENDPOINTS = (
    *(chat_completion, text_completion, model_endpoints),
    # Last the one whose ids may hold a slash, as OWNER/NAME: it would take the others' paths.
    *(analysis_endpoints, porting_endpoints, share_endpoints, adapter_endpoints),
    *(file_endpoints, file_line_endpoints, job_endpoints, job_event_endpoints),
    *(project_endpoints, member_endpoints, service_account_endpoints, key_endpoints),
    *(user_endpoints, admin_key_endpoints, audit_endpoints, usage_endpoints, limit_use_endpoints),
    held_adapter_endpoints,
    *(rate_limit_endpoints, sign_in_endpoints, ops),
)
_COUNTED = ("/v1/chat/completions", "/v1/completions")  # requests that limits and usage count
_DESCRIPTION = (
    "One base model, thousands of personal adapters. Speaks the OpenAI API.\n\n"
    "Every answer has an `x-request-id`: the request's own, or a new one. Every GET has its HEAD. "
    "An error has the form of `ErrorAnswer`, also a 404 of an unknown path and a 405, which names "
    "the path's methods in `Allow`."
)


def http_api(*, keyed: bool = True) -> FastAPI:
    """All routes and how errors are answered. It needs `app.state.services` to answer requests.

    Args:
        keyed: whether the OpenAPI document asks for an API key.
    """
    # Its page has all that a browser needs; FastAPI's own would load it from the internet.
    app: FastAPI = FastAPIOffline(
        title="Verandah", description=_DESCRIPTION, redirect_slashes=False, redoc_url=None
    )
    for module in _ENDPOINTS:
        app.include_router(module.router, responses=failures(*EVERYWHERE))

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("console")

    add_console(app)

    @cache
    def document() -> dict[str, Any]:
        return openapi_document(app, keyed=keyed)

    app.openapi = document  # type: ignore[method-assign]
    app.add_exception_handler(errors.VerandahError, _known)
    app.add_exception_handler(store_errors.StoreError, _known)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _known)
    return app


def create_app(services: Services) -> ASGIApp:
    """Build the application around services that the caller starts and stops."""
    app = http_api(keyed=services.keys.needed)
    app.state.services = services
    app.state.templates = Templates()
    app.state.recent_checks = RecentChecks()
    app.state.waker = waker = StreamWaker()
    app.state.event_hub = job_event_endpoints.event_hub(services)
    app.state.census = AdapterCensus(services.adapters)
    app.state.operations = ops.Operations(services)
    # Around FastAPI and not its middleware, so that the fast path skips FastAPI's own layers.
    routes = {
        "/v1/chat/completions": FastRoute(chat_completion.ChatRequest, chat_completion.answer),
        "/v1/completions": FastRoute(text_completion.CompletionRequest, text_completion.answer),
        "/v1/fine_tuning/jobs": FastRoute(job_request.JobRequest, job_endpoints.answer),
    }
    fast_path = FastPath(app, services, waker, routes)
    limited = BodyLimit(
        fast_path,
        services.describe,
        body_bytes=services.max_body_bytes,
        file_bytes=services.max_file_bytes,
    )
    counted = RateCheck(limited, services, _COUNTED)
    needed = OperationScopes(route for module in _ENDPOINTS for route in module.router.routes)
    run = services.threads.keys.run
    checked: ASGIApp = KeyCheck(counted, services.keys, run, needed, services.describe)
    if services.allowed_origins:
        checked = CrossOrigin(checked, services.describe, services.allowed_origins)
    checked = ConsoleGate(checked, services.keys, run, services.describe)

    def answered(path: str, status: int) -> None:
        if status and path.startswith("/v1/"):  # what health checks and scrapes ask is no traffic
            services.metrics.answered(status)
        if status >= 400 and acting().owner is not None and path in _COUNTED:
            services.usage.refused(acting())

    whole = RequestIds(HeadRequests(checked), services.describe, answered)
    app.state.whole = whole  # for a page that asks several things of the API at once
    return whole
