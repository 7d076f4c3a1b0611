"""/console/admin/audit: who changed what, with filters in the address."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from server.api.app_services import CurrentServices
from server.console.organization.managed import ServerAdminOnly, address
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage, moment
from server.errors import InvalidRequest
from server.tenancy.usage.audit_log import Entry, Wanted

router = APIRouter(prefix="/console/admin/audit", route_class=PageRoute)

_PAGE = 50
_DAY_S = 86_400
_LONGEST = 300  # characters of a value
_NOTHING = "not set"
_ACTIONS: Final = (
    *("api_key.created", "api_key.updated", "api_key.deleted"),
    *("project.created", "project.updated", "project.archived", "project.deleted"),
    *("user.added", "user.updated", "user.deleted", "rate_limit.updated"),
    *("service_account.created", "service_account.updated", "service_account.deleted"),
    *("login.succeeded", "login.failed", "logout.succeeded"),
)

Word = Annotated[str, Query(max_length=256)]


@router.get("")
def audit(
    page: CurrentPage,
    services: CurrentServices,
    _: ServerAdminOnly,
    owner: Word = "",
    actor: Word = "",
    action: Word = "",
    thing: Word = "",
    since: Annotated[str, Query(alias="from", max_length=16)] = "",
    until: Annotated[str, Query(alias="to", max_length=16)] = "",
    after: str = "",
) -> HTMLResponse:
    """The newest first."""
    fields = {"owner": owner, "actor": actor, "action": action, "thing": thing}
    said = {name: value.strip() for name, value in fields.items()}
    mail = "@" in said["actor"]
    last = _day(until, "to")
    wanted = Wanted(
        owners=_few(said["owner"]),
        actors=() if mail else _few(said["actor"]),
        emails=_few(said["actor"]) if mail else (),
        actions=_few(said["action"]),
        objects=_few(said["thing"]),
        since=_day(since, "from"),
        until=None if last is None else last + _DAY_S - 1,
    )
    entries, more = services.tenants.audit.list(wanted, after=after or None, limit=_PAGE)
    query = said | {"from": since, "to": until}
    here = "/console/admin/audit"
    return page.show(
        "audit.html",
        entries=[(entry, [*_changes(entry)]) for entry in entries],
        said=query,
        filtered=any(query.values()),
        actions=_ACTIONS,
        more=address(here, query | {"after": entries[-1].id}) if more else "",
    )


def _few(text: str) -> list[str]:
    return [text] if text else []


def _day(text: str, param: str) -> int | None:
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{param}={text!r} is not a day: write it as 2026-11-30", param=param
        ) from None
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def _changes(entry: Entry) -> Iterator[tuple[str, str | None, str | None]]:
    """Each value that changed: its name, and what it was and is. None: it was not there."""
    before, after = entry.before or {}, entry.after or {}
    for name in dict.fromkeys([*before, *after]):
        old = _shown(name, before[name]) if name in before else None
        new = _shown(name, after[name]) if name in after else None
        empty = old in (None, _NOTHING) and new in (None, _NOTHING)  # as of a key without an end
        if old != new and not empty:
            yield name, old, new


def _shown(name: str, value: object) -> str:
    if value is None:
        return _NOTHING
    if name.endswith("_at") and isinstance(value, int):
        return moment(value)
    words = value if isinstance(value, list) else [value]
    text = ", ".join(
        it if isinstance(it, str) else json.dumps(it, ensure_ascii=False) for it in words
    )
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
