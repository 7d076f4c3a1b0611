"""/v1/organization/projects/{id}/rate_limits: requests and tokens a minute, in OpenAI's shape."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from pydantic import Field

from adapters_store.outside_values import shown
from server.api.app_services import CurrentServices, Services
from server.api.jobs.job_documents import Document, page_document
from server.api.organization.access import Limit, ManagedProject, ServerAdmin
from server.api.reference.answer_model import answers
from server.api.reference.organization_answers import RateLimit, RateLimitPage
from server.api.reference.parameters import After
from server.api.threads import DatabaseRoute
from server.api.wire import Null, WireModel, only_known_query
from server.db.owner_limits import Limits
from server.errors import NotFound
from server.tenancy.limits.limit_book import MOST

router = APIRouter(
    prefix="/v1/organization/projects/{project_id}/rate_limits",
    tags=["organization"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)

_ID = "rl-"  # and the base's id: its limit counts requests to its adapters too
_ELSEWHERE = "Not supported: leave it out."
_RateLimitId = Annotated[str, Path(description="The limit's id.", examples=["rl-base"])]


class RateLimitChange(WireModel):
    """What changes of a rate limit. 0 is no limit, and null the server's own again."""

    max_requests_per_1_minute: int | None = Field(
        None, ge=0, le=MOST, description="Model requests in a minute."
    )
    max_tokens_per_1_minute: int | None = Field(
        None, ge=0, le=MOST, description="Tokens of prompts and answers in a minute."
    )
    max_requests_per_1_day: Null = Field(None, description=_ELSEWHERE)
    max_images_per_1_minute: Null = Field(None, description=_ELSEWHERE)
    max_audio_megabytes_per_1_minute: Null = Field(None, description=_ELSEWHERE)
    batch_1_day_max_input_tokens: Null = Field(None, description=_ELSEWHERE)


_NAMES = {
    "max_requests_per_1_minute": "requests_a_minute",
    "max_tokens_per_1_minute": "tokens_a_minute",
}


def _document(services: Services, limits: Limits) -> Document:
    return {
        "id": _ID + services.base.id,
        "object": "project.rate_limit",
        "model": services.base.id,
        "max_requests_per_1_minute": limits.requests_a_minute,
        "max_tokens_per_1_minute": limits.tokens_a_minute,
    }


@router.get("", responses=answers(RateLimitPage, fails=(404,)))
def list_rate_limits(
    services: CurrentServices,
    project: ManagedProject,
    after: After = None,
    before: str | None = Query(None, description="The id behind the page: there is one page."),
    limit: Limit = 100,
) -> Document:
    """The project's limits a minute: one for the base model and all its adapters together."""
    limits = services.tenants.limits.get(project)
    found = [] if after or before else [_document(services, limits)]
    return page_document(found, False)


@router.post("/{rate_limit_id}", responses=answers(RateLimit, fails=(404,)))
def change_rate_limit(
    rate_limit_id: _RateLimitId,
    body: RateLimitChange,
    services: CurrentServices,
    _: ServerAdmin,
    project: ManagedProject,
) -> Document:
    """Change a limit, which every process holds within a second. Only for the server's admin."""
    if rate_limit_id != _ID + services.base.id:
        raise NotFound(
            f"rate limit {shown(rate_limit_id)} does not exist: GET "
            "/v1/organization/projects/{project_id}/rate_limits lists a project's"
        )
    sent = {ours: getattr(body, it) for it, ours in _NAMES.items() if it in body.model_fields_set}
    book = services.tenants.limits
    return _document(services, book.change(project, sent) if sent else book.get(project))
