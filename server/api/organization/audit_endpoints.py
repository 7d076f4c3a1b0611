"""/v1/organization/audit_logs: who changed what. The server's admin reads all, an owner's its own.

OpenAI's API has filters by brackets: `effective_at[gte]`, `event_types[]`.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from server.api.app_services import CurrentPrincipal, CurrentServices
from server.api.jobs.job_documents import Document, page_document
from server.api.organization.access import Limit, own_projects
from server.api.reference.answer_model import answers
from server.api.reference.parameters import After
from server.api.reference.usage_answers import AuditPage
from server.api.threads import DatabaseRoute
from server.api.wire import only_known_query
from server.tenancy.usage.audit_log import Entry, Wanted

router = APIRouter(
    prefix="/v1/organization/audit_logs",
    tags=["organization"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)

_MOST = 100
_Text = Annotated[str, Field(max_length=256)]
_Texts = list[_Text] | None
_LATEST = 2**53


def _filter(alias: str, description: str) -> object:
    return Query(alias=f"{alias}[]", max_length=_MOST, description=description)


def _time(alias: str, description: str) -> object:
    return Query(alias=f"effective_at[{alias}]", ge=0, le=_LATEST, description=description)


def _document(entry: Entry) -> Document:
    """OpenAI's shape, with `before`, `after` and `address` of our own."""
    kind = entry.action.rpartition(".")[2]
    details: Document = {"id": entry.object}
    if kind in ("created", "added", "imported"):
        details["data"] = entry.after or {}
    elif kind == "updated":
        details["changes_requested"] = entry.after or {}
    return {
        "id": entry.id,
        "object": "organization.audit_log",
        "type": entry.action,
        "effective_at": entry.at,
        "project": None if entry.owner is None else {"id": entry.owner, "name": entry.owner},
        "actor": _actor(entry),
        entry.action: details,
        "before": entry.before,
        "after": entry.after,
        "address": entry.address,
    }


def _actor(entry: Entry) -> Document:
    whose, person = {"id": entry.actor}, entry.actor.startswith("user-")
    session: Document = {"ip_address": entry.address or None}
    if person and entry.key is None:
        return {"type": "session", "session": session | {"user": whose}, "api_key": None}
    key = {
        "id": entry.key,
        "type": "user" if person else "service_account",
        "service_account": None if person else whose,
        "user": whose if person else None,
    }
    return {"type": "api_key", "session": session, "api_key": key}


@router.get("", responses=answers(AuditPage))
def list_audit_logs(
    services: CurrentServices,
    principal: CurrentPrincipal,
    after: After = None,
    before: Annotated[
        str | None, Query(description="The first id of a page: this one ends in front of it.")
    ] = None,
    limit: Limit = 20,
    project_ids: Annotated[_Texts, _filter("project_ids", "Only of these projects.")] = None,
    event_types: Annotated[_Texts, _filter("event_types", "Only events of these types.")] = None,
    actor_ids: Annotated[_Texts, _filter("actor_ids", "Only by these users or keys.")] = None,
    actor_emails: Annotated[_Texts, _filter("actor_emails", "Only by these users.")] = None,
    resource_ids: Annotated[_Texts, _filter("resource_ids", "Only of these things.")] = None,
    gt: Annotated[int | None, _time("gt", "Only after this Unix second.")] = None,
    gte: Annotated[int | None, _time("gte", "Only from this Unix second on.")] = None,
    lt: Annotated[int | None, _time("lt", "Only before this Unix second.")] = None,
    lte: Annotated[int | None, _time("lte", "Only up to this Unix second.")] = None,
) -> Document:
    """What admins and owners changed, the newest first."""
    since = [*([] if gt is None else [gt + 1]), *([] if gte is None else [gte])]
    until = [*([] if lt is None else [lt - 1]), *([] if lte is None else [lte])]
    owners = own_projects(principal, project_ids)
    wanted = Wanted(
        owners=owners or (),
        actions=event_types or (),
        actors=actor_ids or (),
        emails=actor_emails or (),
        objects=resource_ids or (),
        since=max(since, default=None),
        until=min(until, default=None),
    )
    entries, more = services.tenants.audit.list(wanted, after=after, before=before, limit=limit)
    return page_document([_document(entry) for entry in entries], more)
