"""Which scope of a key each operation needs. This table is the one place that says so."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, cast

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from server.tenancy.principal import Scope

Scopes = tuple[Scope, ...]

_USE: Final[Scopes] = ("models.use",)
_SEE: Final[Scopes] = ("adapters.read", "models.use")
_READ: Final[Scopes] = ("adapters.read",)
_WRITE: Final[Scopes] = ("adapters.write",)
_FILES: Final[Scopes] = ("files",)
_JOBS: Final[Scopes] = ("jobs",)
_ADMIN: Final[Scopes] = ("admin",)
_PROJECT: Final = "/v1/organization/projects/{project_id}"

SCOPES_BY_OPERATION: Final[Mapping[str, Scopes]] = {
    "POST /v1/chat/completions": _USE,
    "POST /v1/completions": _USE,
    "GET /v1/models": _SEE,
    "GET /v1/models/{model_id:path}": _SEE,
    "DELETE /v1/models/{model_id:path}": _WRITE,
    "GET /v1/adapters": _READ,
    "GET /v1/adapters/{adapter_id:path}": _READ,
    "DELETE /v1/adapters/{adapter_id:path}": _WRITE,
    "POST /v1/adapters/{adapter_id:path}/pin": _WRITE,
    "POST /v1/adapters/{adapter_id:path}/unpin": _WRITE,
    "GET /v1/adapters/{adapter_id:path}/analysis": _READ,
    "POST /v1/adapters/import": _WRITE,
    "GET /v1/adapters/{adapter_id:path}/export": _READ,
    "POST /v1/adapters/{adapter_id:path}/copy": _WRITE,
    "POST /v1/shares": _WRITE,
    "GET /v1/shares": _READ,
    "DELETE /v1/shares/{share_id}": _WRITE,
    "POST /v1/files": _FILES,
    "GET /v1/files": _FILES,
    "GET /v1/files/{file_id}": _FILES,
    "GET /v1/files/{file_id}/content": _FILES,
    "GET /v1/files/{file_id}/lines": _FILES,
    "DELETE /v1/files/{file_id}": _FILES,
    "POST /v1/fine_tuning/jobs": _JOBS,
    "GET /v1/fine_tuning/jobs": _JOBS,
    "GET /v1/fine_tuning/jobs/{job_id}": _JOBS,
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": _JOBS,
    "POST /v1/fine_tuning/jobs/{job_id}/pause": _JOBS,
    "POST /v1/fine_tuning/jobs/{job_id}/resume": _JOBS,
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": _JOBS,
    "GET /v1/fine_tuning/jobs/{job_id}/events": _JOBS,
    "GET /v1/fine_tuning/jobs/{job_id}/metrics": _JOBS,
    "GET /v1/organization/projects": _ADMIN,
    "POST /v1/organization/projects": _ADMIN,
    f"GET {_PROJECT}": _ADMIN,
    f"POST {_PROJECT}": _ADMIN,
    f"POST {_PROJECT}/archive": _ADMIN,
    f"DELETE {_PROJECT}": _ADMIN,
    f"GET {_PROJECT}/deletion": _ADMIN,
    f"GET {_PROJECT}/rate_limits": _ADMIN,
    f"POST {_PROJECT}/rate_limits/{{rate_limit_id}}": _ADMIN,
    f"GET {_PROJECT}/users": _ADMIN,
    f"POST {_PROJECT}/users": _ADMIN,
    f"GET {_PROJECT}/users/{{user_id}}": _ADMIN,
    f"POST {_PROJECT}/users/{{user_id}}": _ADMIN,
    f"DELETE {_PROJECT}/users/{{user_id}}": _ADMIN,
    f"GET {_PROJECT}/service_accounts": _ADMIN,
    f"POST {_PROJECT}/service_accounts": _ADMIN,
    f"GET {_PROJECT}/service_accounts/{{user_id}}": _ADMIN,
    f"POST {_PROJECT}/service_accounts/{{user_id}}": _ADMIN,
    f"DELETE {_PROJECT}/service_accounts/{{user_id}}": _ADMIN,
    f"POST {_PROJECT}/service_accounts/{{user_id}}/api_keys": _ADMIN,
    f"GET {_PROJECT}/api_keys": _ADMIN,
    f"POST {_PROJECT}/api_keys": _ADMIN,
    f"GET {_PROJECT}/api_keys/{{key_id}}": _ADMIN,
    f"POST {_PROJECT}/api_keys/{{key_id}}": _ADMIN,
    f"DELETE {_PROJECT}/api_keys/{{key_id}}": _ADMIN,
    f"POST {_PROJECT}/api_keys/{{key_id}}/rotate": _ADMIN,
    "GET /v1/organization/users": _ADMIN,
    "GET /v1/organization/users/{user_id}": _ADMIN,
    "POST /v1/organization/users/{user_id}": _ADMIN,
    "DELETE /v1/organization/users/{user_id}": _ADMIN,
    "GET /v1/organization/admin_api_keys": _ADMIN,
    "POST /v1/organization/admin_api_keys": _ADMIN,
    "GET /v1/organization/admin_api_keys/{key_id}": _ADMIN,
    "DELETE /v1/organization/admin_api_keys/{key_id}": _ADMIN,
    "GET /v1/organization/audit_logs": _ADMIN,
    "GET /v1/organization/adapters": _ADMIN,
    "GET /v1/organization/usage/totals": _ADMIN,
    "GET /v1/organization/usage/completions": ("usage.read",),
    "GET /v1/organization/usage/limits": ("usage.read",),
}
"""Any one of the scopes is enough. The server's admin needs none."""


class OperationScopes:
    """Finds what a request needs, by the routes that will answer it and in their order.

    Raises:
        KeyError: a route is not in the table.
    """

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._routes: dict[str, list[tuple[APIRoute, Scopes]]] = {}
        for route in cast(Sequence[APIRoute], [*routes]):
            if route.path.startswith("/v1/"):
                method = next(iter(route.methods or ()))
                needed = SCOPES_BY_OPERATION[f"{method} {route.path}"]
                # Only those of the same kind are compared with a request: `files`, `adapters`.
                self._routes.setdefault(_kind(route.path), []).append((route, needed))

    def __call__(self, method: str, path: str) -> Scopes:
        """The scopes of which one is needed; none for what no route answers."""
        for route, needed in self._routes.get(_kind(path), ()):
            if method in (route.methods or ()) and route.path_regex.match(path):
                return needed
        return ()


def _kind(path: str) -> str:
    return path[4:].partition("/")[0]
