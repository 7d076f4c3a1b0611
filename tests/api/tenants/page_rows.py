"""The matrix of the console: for each page, a browser's request for a team's things.

`<kind>` stands for the id of the team's thing of that kind: see `town.Team.ids`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from server.tenancy.principal import Scope
from tests.api.tenants.rows import ANYBODY, ENGINE, KEY, PROJECT, SERVER, THING, Reach


@dataclass(frozen=True)
class PageRow:
    """A request. The browser's key needs all `scopes`. `form` is sent as a page sends it, `json` as
    a script does. `status` is what who may do it gets: 0 stands for 200 after GET, 303 after POST.
    """

    reach: Reach
    target: str
    scopes: tuple[Scope, ...] = ()
    form: Mapping[str, str] | None = None
    json: object = None
    file: bytes | None = None
    status: int = 0


_JOB, _ADAPTER = "/console/jobs/{job_id}", "/console/adapters/-"
_FILE, _OWNER = "/console/data/{file_id}", "/console/admin/owners/{owner}"
_DATA, _JOBS, _KEYS = "/console/data", "/console/jobs", "/console/keys"
_OWNERS, _ADMIN = "/console/admin/owners", "/console/admin"
_ID: Final = "{adapter_id:path}"
_MANAGES: Final = ("admin",)
_CHAT = {"model": "<project>/<adapter>", "messages": [{"role": "user", "content": "hi"}]}


def _of_file(path: str, *more: Scope, thing: str = "file", **form: str) -> PageRow:
    return PageRow(THING, f"{_DATA}/<{thing}>{path}", ("files", *more), form)


def _of_job(path: str, thing: str = "ended") -> PageRow:
    return PageRow(THING, f"{_JOBS}/<{thing}>{path}", ("jobs",))


def _of_adapter(act: str, scope: Scope, **form: str) -> PageRow:
    return PageRow(THING, f"{_ADAPTER}/{act}/<project>/<adapter>", (scope,), form)


def _managed(path: str, status: int = 0, **form: str) -> PageRow:
    return PageRow(PROJECT, f"{_KEYS}{path}?owner=<project>", _MANAGES, form, status=status)


def _servers(target: str, status: int = 0, **form: str) -> PageRow:
    return PageRow(SERVER, target, (), form, status=status)


PAGES: Final[Mapping[str, PageRow]] = {
    "GET /console/{rest:path}": PageRow(KEY, "/console/nothing", status=404),
    "GET /console": PageRow(KEY, "/console"),
    "GET /console/home/live": PageRow(KEY, "/console/home/live"),
    "GET /console/sign-in": PageRow(ANYBODY, "/console/sign-in"),
    "POST /console/sign-in": PageRow(ANYBODY, "/console/sign-in", form={"key": "no"}, status=401),
    "GET /console/sign-in/choose": PageRow(ANYBODY, "/console/sign-in/choose", status=404),
    "POST /console/sign-in/choose": PageRow(
        ANYBODY, "/console/sign-in/choose", form={"owner": "<project>"}, status=404
    ),
    "POST /console/sign-in/out": PageRow(ANYBODY, "/console/sign-in/out"),
    f"GET {_DATA}": PageRow(KEY, _DATA, ("files",)),
    f"POST {_DATA}": PageRow(KEY, _DATA, ("files",), file=b'{"prompt": "a"}'),
    f"GET {_FILE}": _of_file(""),
    f"GET {_FILE}/delete": _of_file("/delete"),
    f"POST {_FILE}/delete": _of_file("/delete", thing="spare"),
    f"GET {_FILE}/check": _of_file("/check", "jobs"),
    f"GET {_FILE}/problems": _of_file("/problems", "jobs"),
    f"GET {_FILE}/lines": _of_file("/lines"),
    f"POST {_FILE}/copy": _of_file("/copy", "jobs", thing="odd"),
    f"POST {_FILE}/train": _of_file("/train", "jobs", suffix="butler"),
    f"GET {_JOBS}": PageRow(KEY, _JOBS, ("jobs",)),
    f"GET {_JOBS}/compare": PageRow(THING, f"{_JOBS}/compare?job=<ended>&job=<job>", ("jobs",)),
    f"GET {_JOB}": _of_job(""),
    f"GET {_JOB}/checkpoints": _of_job("/checkpoints"),
    f"GET {_JOB}/events": _of_job("/events"),
    f"POST {_JOB}/cancel": _of_job("/cancel", "job"),
    f"POST {_JOB}/pause": _of_job("/pause", "job"),
    f"POST {_JOB}/resume": _of_job("/resume", "paused"),
    "GET /console/compare": PageRow(KEY, "/console/compare", ("models.use",)),
    "GET /console/compare/models": PageRow(KEY, "/console/compare/models", ("models.use",)),
    "POST /console/compare/stream": PageRow(
        KEY, "/console/compare/stream", ("models.use",), json={"requests": [_CHAT]}, status=200
    ),
    "GET /console/adapters": PageRow(KEY, "/console/adapters", ("adapters.read",)),
    f"GET {_ADAPTER}/import": PageRow(KEY, f"{_ADAPTER}/import", ("adapters.write",)),
    f"GET {_ADAPTER}/place/{_ID}": _of_adapter("place", "adapters.read"),
    f"POST {_ADAPTER}/pin/{_ID}": PageRow(
        ENGINE, f"{_ADAPTER}/pin/<project>/<adapter>@1", ("adapters.write",)
    ),
    f"GET {_ADAPTER}/export/{_ID}": _of_adapter("export", "adapters.read"),
    f"POST {_ADAPTER}/latest/{_ID}": PageRow(
        THING, f"{_ADAPTER}/latest/<project>/<adapter>@1", ("adapters.write",)
    ),
    f"POST {_ADAPTER}/copy/{_ID}": _of_adapter("copy", "adapters.write", name="mine"),
    f"POST {_ADAPTER}/share/{_ID}": PageRow(
        THING, f"{_ADAPTER}/share/<adapter>", ("adapters.write",), {"receiver": "all"}
    ),
    f"POST {_ADAPTER}/unshare/{{share_id}}": PageRow(
        THING, f"{_ADAPTER}/unshare/<share>", ("adapters.write",), {"adapter": "<adapter>"}
    ),
    f"GET {_ADAPTER}/delete/{_ID}": _of_adapter("delete", "adapters.write"),
    f"POST {_ADAPTER}/delete/{_ID}": _of_adapter("delete", "adapters.write", confirm="<adapter>"),
    f"GET /console/adapters/{_ID}": PageRow(
        THING, "/console/adapters/<project>/<adapter>", ("adapters.read",)
    ),
    "GET /console/usage": PageRow(PROJECT, "/console/usage?owner=<project>", ("usage.read",)),
    "GET /console/usage/limits": PageRow(
        PROJECT, "/console/usage/limits?owner=<project>", ("usage.read",)
    ),
    "GET /console/usage/csv": PageRow(
        PROJECT, "/console/usage/csv?owner=<project>", ("usage.read",)
    ),
    f"GET {_ADMIN}": _servers(_ADMIN),
    f"GET {_ADMIN}/state": _servers(f"{_ADMIN}/state"),
    f"GET {_OWNERS}": _servers(_OWNERS),
    f"POST {_OWNERS}": _servers(_OWNERS, name="new"),
    f"GET {_OWNER}": _servers(f"{_OWNERS}/<project>"),
    f"POST {_OWNER}/name": _servers(f"{_OWNERS}/<project>/name", name="renamed"),
    f"POST {_OWNER}/limits": _servers(f"{_OWNERS}/<project>/limits", files="5"),
    f"POST {_OWNER}/archive": _servers(f"{_OWNERS}/<project>/archive"),
    f"POST {_OWNER}/delete": _servers(f"{_OWNERS}/<project>/delete", typed="<project>"),
    f"GET {_OWNER}/deletion": _servers(f"{_OWNERS}/<gone>/deletion"),
    f"GET {_ADMIN}/usage": _servers(f"{_ADMIN}/usage"),
    f"GET {_ADMIN}/adapters": _servers(f"{_ADMIN}/adapters"),
    f"GET {_ADMIN}/audit": _servers(f"{_ADMIN}/audit?owner=<project>"),
    f"GET {_ADMIN}/keys": _servers(f"{_ADMIN}/keys"),
    f"POST {_ADMIN}/keys": _servers(f"{_ADMIN}/keys", 200, name="new"),
    f"POST {_ADMIN}/keys/{{key_id}}/revoke": _servers(f"{_ADMIN}/keys/<admin_key>/revoke"),
    f"GET {_KEYS}/members": _managed("/members"),
    f"POST {_KEYS}/members": _managed("/members", email="a@b.c"),
    f"POST {_KEYS}/members/{{user_id}}": _managed("/members/<user>", role="owner"),
    f"POST {_KEYS}/members/{{user_id}}/remove": _managed("/members/<user>/remove"),
    f"GET {_KEYS}/programs": _managed("/programs"),
    f"POST {_KEYS}/programs": _managed("/programs", 200, name="new"),
    f"GET {_KEYS}/programs/{{user_id}}": _managed("/programs/<account>"),
    f"POST {_KEYS}/programs/{{user_id}}": _managed("/programs/<account>", name="n", role="owner"),
    f"POST {_KEYS}/programs/{{user_id}}/keys": _managed(
        "/programs/<account>/keys", 200, scopes="files"
    ),
    f"POST {_KEYS}/programs/{{user_id}}/delete": _managed("/programs/<account>/delete"),
    f"GET {_KEYS}": _managed(""),
    f"POST {_KEYS}": _managed("", 200, name="new", scopes="files"),
    f"GET {_KEYS}/{{key_id}}": _managed("/<key>"),
    f"POST {_KEYS}/{{key_id}}": _managed("/<key>", scopes="files"),
    f"POST {_KEYS}/{{key_id}}/rotate": _managed("/<key>/rotate", 200),
    f"POST {_KEYS}/{{key_id}}/revoke": _managed("/<key>/revoke"),
}

_TRAINS = f"{_DATA}/<own file>/train"


def _named(target: str, form: Mapping[str, str] | None = None) -> PageRow:
    return PageRow(KEY, target, (), form)


NAMED: Final = (
    ("GET", _named(f"{_JOBS}?after=<job>")),
    ("GET", _named(f"{_JOBS}/compare?job=<own job>&job=<ended>")),
    ("GET", _named(f"{_JOBS}/<own ended>/events?after=<event>")),
    ("GET", _named(f"{_DATA}?after=<file>")),
    ("GET", _named(f"{_DATA}/<own file>/lines?model=<project>/<adapter>")),
    ("GET", _named(f"{_DATA}/<own file>/check?model=<project>/<adapter>")),
    ("GET", _named(f"{_DATA}/<own file>/check?validation_file=<file>")),
    ("POST", _named(_TRAINS, {"model": "<project>/<adapter>"})),
    ("POST", _named(_TRAINS, {"validation_file": "<file>"})),
    ("GET", _named("/console/compare?model=<project>/<adapter>")),
    ("GET", _named("/console/compare/models?q=<project>/<adapter>")),
    ("GET", _named("/console/compare/models?q=<project>/<adapter>@")),
    ("GET", _named("/console/adapters?after=<project>/<adapter>")),
    ("GET", _named("/console/adapters?contains=<project>")),
    ("GET", _named("/console/adapters/<own adapter>?shares=<share>")),
    (
        "POST",
        _named(f"{_ADAPTER}/unshare/<own share>", {"adapter": "<project>/<adapter>"}),
    ),
    ("POST", _named(f"{_ADAPTER}/copy/<own adapter>", {"name": "<project>/<adapter>"})),
    ("GET", _named(f"{_KEYS}?after=<key>")),
    ("GET", _named(f"{_KEYS}/<key>")),
    ("POST", _named(f"{_KEYS}/<key>", {"scopes": "files"})),
    ("POST", _named(f"{_KEYS}/<key>/rotate")),
    ("POST", _named(f"{_KEYS}/<key>/revoke")),
    ("POST", _named(_KEYS, {"name": "x", "scopes": "files", "user": "<user>"})),
    ("GET", _named(f"{_KEYS}/members?after=<user>")),
    ("POST", _named(f"{_KEYS}/members/<user>", {"role": "owner"})),
    ("POST", _named(f"{_KEYS}/members/<user>/remove")),
    ("GET", _named(f"{_KEYS}/programs/<account>")),
    ("POST", _named(f"{_KEYS}/programs/<account>", {"name": "x", "role": "owner"})),
    ("POST", _named(f"{_KEYS}/programs/<account>/keys", {"scopes": "files"})),
    ("POST", _named(f"{_KEYS}/programs/<account>/delete")),
)
"""Requests about what another has, from among one's own things: `<own kind>` is the asker's."""
