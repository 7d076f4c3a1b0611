"""/v1/organization/adapters: the largest and the busiest adapters of all owners."""

import time
from typing import Annotated, Final, Literal, cast

from fastapi import APIRouter, Depends, Query, Request

from server.api.adapters.adapter_census import AdapterCensus, Census
from server.api.app_services import CurrentServices
from server.api.jobs.job_documents import Document
from server.api.organization.access import Limit, ServerAdmin
from server.api.reference.answer_model import answers
from server.api.reference.usage_answers import HeldAdapters
from server.api.wire import only_known_query
from server.tenancy.usage.usage_book import DAY_S, Total

router = APIRouter(
    prefix="/v1/organization", tags=["organization"], dependencies=[Depends(only_known_query)]
)

_LONGEST_DAYS: Final = 366


async def _census(request: Request) -> AdapterCensus:
    return cast(AdapterCensus, request.app.state.census)


CurrentCensus = Annotated[AdapterCensus, Depends(_census)]


@router.get("/adapters", responses=answers(HeldAdapters))
async def list_held_adapters(
    services: CurrentServices,
    census: CurrentCensus,
    _: ServerAdmin,
    order: Literal["bytes", "requests"] = Query("bytes", description="What the first has most of."),
    days: int = Query(7, ge=1, le=_LONGEST_DAYS, description="The days that requests are of."),
    project_id: str | None = Query(None, description="Only of this project. Needs `order=bytes`."),
    limit: Limit = 50,
) -> Document:
    """The largest or the busiest adapters of all projects. Only for the server's admin.

    Bytes are counted once a minute at most, and apart: `counted_at` says when.
    """
    counted = await census.last()
    since = int(time.time()) - days * DAY_S
    run = services.threads.reading.run
    if order == "requests":
        busy = await run(services.tenants.usage.adapters, since, limit, services.base.id)
        names = [it.name for it in busy]
    else:
        largest = [] if counted is None else counted.largest(limit, project_id)
        names = ["/".join(it) for it in largest]
        busy = await run(services.tenants.usage.adapters, since, limit, services.base.id, names)
    used = {it.name: it for it in busy}
    return {
        "object": "list",
        "data": [_held(name, counted, used.get(name)) for name in names],
        "counted_at": None if counted is None else counted.at,
        "adapters": None if counted is None else sum(counted.adapters.values()),
        "bytes": None if counted is None else sum(counted.bytes.values()),
    }


def _held(whole: str, counted: Census | None, used: Total | None) -> Document:
    owner, _, name = whole.partition("/")
    return {
        "object": "organization.adapter",
        "project_id": owner,
        "name": name,
        "bytes": None if counted is None else counted.sizes.get((owner, name)),
        "num_model_requests": 0 if used is None else used.requests,
        "input_tokens": 0 if used is None else used.prompt,
        "output_tokens": 0 if used is None else used.completion,
        "training_tokens": 0 if used is None else used.training,
    }
