"""The matrix: for each operation, a request for a team's things and what each key gets.

`<kind>` stands for the id of the team's thing of that kind: see `town.Team.ids`.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any


class Reach(Enum):
    """Whom an operation answers."""

    ANYBODY = auto()  # without a key too
    KEY = auto()  # each key, about its own owner's things
    THING = auto()  # keys of the owner of the thing that is named
    ADMINS = auto()  # each owner's admin, about what that owner may see
    PROJECT = auto()  # the admins of the project that is named, and the server's
    SERVER = auto()  # the server's admins
    ENGINE = auto()  # the server's admins, though owners' keys have the scope


@dataclass(frozen=True)
class Row:
    """A request. `fails` is the status for a foreign thing; of what anybody may ask, for a wrong
    key."""

    reach: Reach
    target: str
    body: Any = None
    form: dict[str, str] | None = None
    files: dict[str, bytes] | None = None
    fails: int = 404


KEY, THING, ANYBODY = Reach.KEY, Reach.THING, Reach.ANYBODY
ADMINS, PROJECT, SERVER, ENGINE = Reach.ADMINS, Reach.PROJECT, Reach.SERVER, Reach.ENGINE

_CHAT = {"model": "<project>/<adapter>", "messages": [{"role": "user", "content": "hi"}]}
_TEXT = {"model": "<project>/<adapter>@1", "prompt": "hi"}
_JOB = {"model": "base", "training_file": "<file>", "suffix": "butler"}
_ADAPTERS = "/v1/adapters"
_ADAPTER = f"{_ADAPTERS}/<project>/<adapter>"
_MODEL = "/v1/models/<project>/<adapter>"
_JOBS = "/v1/fine_tuning/jobs"
_ALL = "/v1/organization"
_HERE = f"{_ALL}/projects/<project>"
_A = "/v1/adapters/{adapter_id}"
_J = "/v1/fine_tuning/jobs/{job_id}"
_P = "/v1/organization/projects/{project_id}"
_IMPORT = {"config": b"{}", "weights": b"w"}

MATRIX: dict[str, Row] = {
    "GET /health": Row(ANYBODY, "/health", fails=200),
    "GET /ready": Row(ANYBODY, "/ready", fails=200),
    "GET /metrics": Row(ANYBODY, "/metrics", fails=401),
    "POST /v1/chat/completions": Row(THING, "/v1/chat/completions", _CHAT),
    "POST /v1/completions": Row(THING, "/v1/completions", _TEXT),
    "GET /v1/models": Row(KEY, "/v1/models"),
    "GET /v1/models/{model_id}": Row(THING, _MODEL),
    "DELETE /v1/models/{model_id}": Row(THING, _MODEL),
    "GET /v1/adapters": Row(KEY, "/v1/adapters"),
    f"GET {_A}": Row(THING, _ADAPTER),
    f"DELETE {_A}": Row(THING, f"{_ADAPTER}@1"),
    f"POST {_A}/copy": Row(THING, f"{_ADAPTER}/copy", {"name": "mine"}),
    "POST /v1/shares": Row(THING, "/v1/shares", {"adapter": "<adapter>", "with": "all"}),
    "GET /v1/shares": Row(KEY, "/v1/shares"),
    "DELETE /v1/shares/{share_id}": Row(THING, "/v1/shares/<share>"),
    f"POST {_A}/pin": Row(ENGINE, f"{_ADAPTER}/pin"),
    f"POST {_A}/unpin": Row(ENGINE, f"{_ADAPTER}/unpin"),
    f"GET {_A}/analysis": Row(THING, f"{_ADAPTER}/analysis"),
    f"GET {_A}/export": Row(THING, f"{_ADAPTER}/export"),
    "POST /v1/adapters/import": Row(
        KEY, "/v1/adapters/import", form={"name": "other"}, files=_IMPORT
    ),
    "POST /v1/files": Row(
        KEY, "/v1/files", form={"purpose": "fine-tune"}, files={"file": b'{"prompt": "a"}'}
    ),
    "GET /v1/files": Row(KEY, "/v1/files"),
    "GET /v1/files/{file_id}": Row(THING, "/v1/files/<file>"),
    "GET /v1/files/{file_id}/content": Row(THING, "/v1/files/<results>/content"),
    "GET /v1/files/{file_id}/lines": Row(THING, "/v1/files/<file>/lines"),
    "DELETE /v1/files/{file_id}": Row(THING, "/v1/files/<spare>"),
    f"POST {_JOBS}": Row(THING, _JOBS, _JOB, fails=400),
    f"GET {_JOBS}": Row(KEY, _JOBS),
    f"GET {_J}": Row(THING, f"{_JOBS}/<ended>"),
    f"POST {_J}/cancel": Row(THING, f"{_JOBS}/<job>/cancel"),
    f"POST {_J}/pause": Row(THING, f"{_JOBS}/<job>/pause"),
    f"POST {_J}/resume": Row(THING, f"{_JOBS}/<paused>/resume"),
    f"GET {_J}/checkpoints": Row(THING, f"{_JOBS}/<ended>/checkpoints"),
    f"GET {_J}/events": Row(THING, f"{_JOBS}/<ended>/events?stream=true"),
    f"GET {_J}/metrics": Row(THING, f"{_JOBS}/<ended>/metrics"),
    f"GET {_ALL}/projects": Row(ADMINS, f"{_ALL}/projects"),
    f"POST {_ALL}/projects": Row(SERVER, f"{_ALL}/projects", {"name": "new"}),
    f"GET {_P}": Row(PROJECT, _HERE),
    f"POST {_P}": Row(PROJECT, _HERE, {"name": "renamed"}),
    f"DELETE {_P}": Row(SERVER, _HERE),
    f"GET {_P}/deletion": Row(SERVER, f"{_ALL}/projects/<gone>/deletion"),
    f"POST {_P}/archive": Row(SERVER, f"{_HERE}/archive"),
    f"GET {_P}/users": Row(PROJECT, f"{_HERE}/users"),
    f"POST {_P}/users": Row(PROJECT, f"{_HERE}/users", {"role": "member", "email": "a@b.c"}),
    f"GET {_P}/users/{{user_id}}": Row(PROJECT, f"{_HERE}/users/<user>"),
    f"POST {_P}/users/{{user_id}}": Row(PROJECT, f"{_HERE}/users/<user>", {"role": "owner"}),
    f"DELETE {_P}/users/{{user_id}}": Row(PROJECT, f"{_HERE}/users/<user>"),
    f"GET {_P}/service_accounts": Row(PROJECT, f"{_HERE}/service_accounts"),
    f"POST {_P}/service_accounts": Row(PROJECT, f"{_HERE}/service_accounts", {"name": "new"}),
    f"GET {_P}/service_accounts/{{user_id}}": Row(PROJECT, f"{_HERE}/service_accounts/<account>"),
    f"POST {_P}/service_accounts/{{user_id}}": Row(
        PROJECT, f"{_HERE}/service_accounts/<account>", {"name": "new"}
    ),
    f"DELETE {_P}/service_accounts/{{user_id}}": Row(
        PROJECT, f"{_HERE}/service_accounts/<account>"
    ),
    f"POST {_P}/service_accounts/{{user_id}}/api_keys": Row(
        PROJECT, f"{_HERE}/service_accounts/<account>/api_keys", {"name": "new"}
    ),
    f"GET {_P}/api_keys": Row(PROJECT, f"{_HERE}/api_keys"),
    f"POST {_P}/api_keys": Row(PROJECT, f"{_HERE}/api_keys", {"name": "new"}),
    f"GET {_P}/api_keys/{{key_id}}": Row(PROJECT, f"{_HERE}/api_keys/<key>"),
    f"POST {_P}/api_keys/{{key_id}}": Row(
        PROJECT, f"{_HERE}/api_keys/<key>", {"scopes": ["files"]}
    ),
    f"DELETE {_P}/api_keys/{{key_id}}": Row(PROJECT, f"{_HERE}/api_keys/<key>"),
    f"POST {_P}/api_keys/{{key_id}}/rotate": Row(PROJECT, f"{_HERE}/api_keys/<key>/rotate", {}),
    f"GET {_P}/rate_limits": Row(PROJECT, f"{_HERE}/rate_limits"),
    f"POST {_P}/rate_limits/{{rate_limit_id}}": Row(
        SERVER, f"{_HERE}/rate_limits/rl-base", {"max_requests_per_1_minute": 5}
    ),
    f"GET {_ALL}/audit_logs": Row(ADMINS, f"{_ALL}/audit_logs"),
    f"GET {_ALL}/usage/completions": Row(KEY, f"{_ALL}/usage/completions?start_time=1700000000"),
    f"GET {_ALL}/usage/limits": Row(KEY, f"{_ALL}/usage/limits"),
    f"GET {_ALL}/usage/totals": Row(SERVER, f"{_ALL}/usage/totals?start_time=1700000000"),
    f"GET {_ALL}/adapters": Row(SERVER, f"{_ALL}/adapters"),
    f"GET {_ALL}/users": Row(SERVER, f"{_ALL}/users"),
    f"GET {_ALL}/users/{{user_id}}": Row(SERVER, f"{_ALL}/users/<user>"),
    f"POST {_ALL}/users/{{user_id}}": Row(SERVER, f"{_ALL}/users/<user>", {"role": "owner"}),
    f"DELETE {_ALL}/users/{{user_id}}": Row(SERVER, f"{_ALL}/users/<user>"),
    f"GET {_ALL}/admin_api_keys": Row(SERVER, f"{_ALL}/admin_api_keys"),
    f"POST {_ALL}/admin_api_keys": Row(SERVER, f"{_ALL}/admin_api_keys", {"name": "new"}),
    f"GET {_ALL}/admin_api_keys/{{key_id}}": Row(SERVER, f"{_ALL}/admin_api_keys/<admin_key>"),
    f"DELETE {_ALL}/admin_api_keys/{{key_id}}": Row(SERVER, f"{_ALL}/admin_api_keys/<admin_key>"),
}
