"""/v1/organization/usage/limits: an owner's limits, and how much of each is used now."""

from dataclasses import asdict
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query

from server.api.app_services import CurrentPrincipal, CurrentServices, Services
from server.api.jobs.job_documents import Document
from server.api.reference.answer_model import answers
from server.api.reference.usage_answers import LimitUse
from server.api.threads import DatabaseRoute
from server.api.wire import only_known_query
from server.tenancy.owners import no_such_project

router = APIRouter(
    prefix="/v1/organization/usage",
    tags=["organization"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)

MOST_MEASURED: Final = 1000
"""Adapters whose bytes are summed up where nothing limits them: it takes a look at each file."""


@router.get("/limits", responses=answers(LimitUse, fails=(404,)))
def get_limit_use(
    services: CurrentServices,
    principal: CurrentPrincipal,
    project_id: Annotated[
        str | None, Query(max_length=256, description="The project. Left out: the key's own.")
    ] = None,
) -> Document:
    """What the project may use, and what it uses at this moment."""
    owner = principal.owner if project_id is None else project_id
    if owner != principal.owner and not principal.server_admin:
        raise no_such_project(owner)
    limits = asdict(services.tenants.limits.get(owner))
    del limits["weight"]  # a share of the engine, which is not used up
    used = _used(services, owner, bytes_limited=bool(limits["stored_bytes"]))
    return {
        "object": "organization.usage.limits",
        "project_id": owner,
        "limits": [
            {"name": name, "limit": limit or None, "used": used.get(name)}
            for name, limit in limits.items()
        ],
    }


def _used(services: Services, owner: str, *, bytes_limited: bool) -> dict[str, int | None]:
    kept, names = services.jobs.kept(owner), set(services.adapters.names(owner))
    last_minute = {
        "requests_a_minute": services.history.in_last(60, owner, "requests"),
        "tokens_a_minute": services.history.in_last(60, owner, "prompt", "completion"),
    }
    stored: int | None = None
    if bytes_limited or len(names) <= MOST_MEASURED:
        coming = sum(size for _, size in kept.coming)
        stored = kept.file_bytes + coming + sum(services.adapters.sizes(owner).values())
    return {
        **last_minute,
        **services.limits.used(owner),
        "adapters": len(names | {name for name, _ in kept.coming}),
        "files": kept.files,
        "stored_bytes": stored,
        "running_jobs": kept.running_jobs,
        "waiting_jobs": kept.waiting_jobs,
        "training_tokens_a_day": kept.trained_tokens,
    }
