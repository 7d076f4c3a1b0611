"""/v1/organization/usage/completions: what was used, in buckets of an hour or a day.

The server's admin sees all projects, a key with the scope `usage.read` its own.
"""

import re
import time
from typing import Annotated, Final, Literal, cast

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from adapters_store.outside_values import shown
from server.api.app_services import CurrentPrincipal, CurrentServices
from server.api.jobs.job_documents import Document
from server.api.organization.access import Limit, ServerAdmin, own_projects
from server.api.reference.answer_model import answers
from server.api.reference.usage_answers import ProjectTotals, UsagePage
from server.api.threads import DatabaseRoute
from server.api.wire import only_known_query
from server.db.usage_rows import HOUR_S
from server.errors import InvalidRequest
from server.tenancy.usage.usage_book import DAY_S, Group, Place, Question, Total, Used

router = APIRouter(
    prefix="/v1/organization/usage",
    tags=["organization"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)

_LATEST: Final = 2**40
_MOST_IDS: Final = 100
_MOST_SKIPPED: Final = 1_000_000
_WIDTHS: Final = {"1h": HOUR_S, "1d": DAY_S}
_BUCKETS: Final = {"1h": (24, 168), "1d": (7, 31)}  # by default, and at most
_GROUPS: Final[dict[str, Group]] = {
    "project_id": "owner",
    "user_id": "user",
    "api_key_id": "key",
    "model": "model",
}
_ALWAYS_NULL: Final = ("batch", "service_tier")
_Ids = Annotated[list[Annotated[str, Field(max_length=256)]] | None, Field(max_length=_MOST_IDS)]
_GroupBy = Literal["project_id", "user_id", "api_key_id", "model", "batch", "service_tier"]


def _ids(name: str) -> object:
    return Query(alias=f"{name}[]", description=f"Only of these {name}.")


@router.get("/completions", responses=answers(UsagePage))
def get_usage(
    services: CurrentServices,
    principal: CurrentPrincipal,
    start_time: Annotated[int, Query(ge=0, le=_LATEST, description="From when, Unix seconds.")],
    end_time: Annotated[
        int | None, Query(ge=1, le=_LATEST, description="Until when. Left out: until now.")
    ] = None,
    bucket_width: Annotated[
        Literal["1m", "1h", "1d"], Query(description="`1h` or `1d`: usage is kept by the hour.")
    ] = "1d",
    group_by: Annotated[
        list[_GroupBy] | None,
        Query(alias="group_by[]", max_length=8, description="What to count apart."),
    ] = None,
    project_ids: Annotated[_Ids, _ids("project_ids")] = None,
    user_ids: Annotated[_Ids, _ids("user_ids")] = None,
    api_key_ids: Annotated[_Ids, _ids("api_key_ids")] = None,
    models: Annotated[_Ids, _ids("models")] = None,
    batch: Annotated[bool | None, Query(description="True: nothing, as there are none.")] = None,
    limit: Annotated[int | None, Query(ge=1, description="How many buckets at most.")] = None,
    page: Annotated[str | None, Query(description="The `next_page` of the page before.")] = None,
) -> Document:
    """Tokens and requests in each bucket, which begin at whole hours or days of UTC."""
    if bucket_width == "1m":
        raise InvalidRequest(
            "bucket_width=1m is not kept: usage is counted by the hour, so send 1h or 1d",
            param="bucket_width",
        )
    width = _WIDTHS[bucket_width]
    end = int(time.time()) + 1 if end_time is None else end_time
    if end <= start_time:
        raise InvalidRequest(
            f"end_time={end} is not after start_time={start_time}: send a later one",
            param="end_time",
        )
    groups = dict.fromkeys(_GROUPS[name] for name in group_by or () if name in _GROUPS)
    question = Question(
        start=start_time,
        end=end,
        width=width,
        group_by=[*groups],
        owners=[] if batch else own_projects(principal, project_ids),
        users=user_ids,
        keys=api_key_ids,
        models=models,
    )
    place = Place(start_time) if page is None else _place(page, start_time, end)
    starts, results, following = services.tenants.usage.buckets(
        question, place, _count(limit, bucket_width)
    )
    by_start: dict[int, list[Document]] = {start: [] for start in starts}
    for used in results:
        by_start[used.start].append(_result(used))
    return {
        "object": "page",
        "data": [_bucket(start, width, found) for start, found in by_start.items()],
        "has_more": following is not None,
        "next_page": following and f"{following.start}.{following.skipped}",
    }


@router.get("/totals", responses=answers(ProjectTotals))
def get_totals(
    services: CurrentServices,
    _: ServerAdmin,
    start_time: Annotated[int, Query(ge=0, le=_LATEST, description="From when, Unix seconds.")],
    limit: Limit = 20,
    page: Annotated[
        int, Query(ge=0, le=_MOST_SKIPPED, description="The `next_page` of the page before.")
    ] = 0,
) -> Document:
    """What each project used from then until now. Only for the server's admin."""
    totals, more = services.tenants.usage.owners(start_time, limit, page)
    return {
        "object": "page",
        "data": [_total(total) for total in totals],
        "has_more": more,
        "next_page": str(page + limit) if more else None,
    }


def _total(total: Total) -> Document:
    return {
        "object": "organization.usage.total",
        "project_id": total.name,
        "num_model_requests": total.requests,
        "num_refused_requests": total.refusals,
        "input_tokens": total.prompt,
        "input_cached_tokens": total.cached,
        "output_tokens": total.completion,
        "training_tokens": total.training,
    }


def _count(limit: int | None, bucket_width: str) -> int:
    usual, most = _BUCKETS[bucket_width]
    if limit is not None and limit > most:
        raise InvalidRequest(
            f"limit={limit} is above {most}, the most buckets of {bucket_width}: send fewer",
            param="limit",
        )
    return usual if limit is None else limit


def _place(page: str, start: int, end: int) -> Place:
    match = re.fullmatch(r"([0-9]{1,13})\.([0-9]{1,9})", page)
    if match is None or not start - DAY_S < int(match[1]) < end:
        raise InvalidRequest(
            f"page {shown(page)} is not a next_page of this question: send the same start_time, "
            "end_time and bucket_width as before, or leave page out",
            param="page",
        )
    return Place(int(match[1]), int(match[2]))


def _bucket(start: int, width: int, results: list[Document]) -> Document:
    return {
        "object": "bucket",
        "start_time": start,
        "end_time": start + width,
        "results": results,
    }


def _result(used: Used) -> Document:
    ids = {name: cast(str | None, getattr(used, group)) or None for name, group in _GROUPS.items()}
    return {
        "object": "organization.usage.completions.result",
        **ids,
        **dict.fromkeys(_ALWAYS_NULL),
        "num_model_requests": used.requests,
        "num_refused_requests": used.refusals,
        "input_tokens": used.prompt,
        "input_cached_tokens": used.cached,
        "output_tokens": used.completion,
        "training_tokens": used.training,
    }
