"""Parts of a file's page that read the file: the check, the lines, and what follows from them."""

from typing import Annotated, Any, Final, Literal, cast
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Query, Response
from fastapi.responses import HTMLResponse

from server.api.app_services import CurrentServices
from server.api.jobs import file_line_endpoints, job_endpoints
from server.console.data.file_check import (
    as_csv,
    as_jsonl,
    bad_lines,
    copy_without_bad_lines,
    dry_run,
)
from server.console.data.recent_checks import RecentChecks
from server.console.data.shown_line import shown_runs
from server.console.data.training_choices import TrainingChoices
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage, needs
from server.errors import VerandahError
from server.jobs.files.chosen_lines import LAST_LINE
from server.jobs.files.datasets import MAX_PROBLEMS
from server.jobs.files.file_store import StoredFile

router = APIRouter(route_class=PageRoute, dependencies=[Depends(needs("files"))])

_TRAINS: Final = [Depends(needs("jobs"))]
_LISTED: Final = 20  # problems of a page
_LONGEST_TEXT: Final = 160  # characters of a bad line in the list
_LINES: Final = 3
_COUNTED: Final = 16 * 2**20  # bytes: of larger files it is not known whether all lines are bad
_FOUND: Final[dict[str, Any]] = {"appraisal": None, "problems": [], "problem_count": 0}


async def _own_file(page: CurrentPage, services: CurrentServices, file_id: str) -> StoredFile:
    """Raises NotFound before anything else is looked at, as for a file that does not exist."""
    return await services.threads.reading.run(services.files.get, page.owner, file_id)


_OwnFile = Annotated[StoredFile, Depends(_own_file)]


@router.get("/console/data/{file_id}/check", dependencies=_TRAINS)
async def check(
    page: CurrentPage,
    services: CurrentServices,
    file: _OwnFile,
    choices: Annotated[TrainingChoices, Query()],
    at: Annotated[int, Query(alias="page", ge=1, le=MAX_PROBLEMS)] = 1,
) -> HTMLResponse:
    """The dry run of a job with these choices: what is wrong, or what it would take."""
    found, refused = _FOUND, None
    recent = cast(RecentChecks, page.request.app.state.recent_checks)
    try:
        known = recent.of(page.owner, file.id, choices) if at > 1 else None
        found = known or await dry_run(services, page.owner, file.id, choices)
        recent.keep(page.owner, file.id, choices, found)
    except VerandahError as error:
        refused = services.describe(error)
    problems = found["problems"]
    whole = await services.threads.reading.run(services.files.lines, file, _COUNTED)
    pages = max(1, -(-len(problems) // _LISTED))
    at = min(at, pages)
    files = {"training_file": file.id, "validation_file": choices.validation_file}
    some = problems[(at - 1) * _LISTED : at * _LISTED]
    url, keyed = str(page.request.base_url).rstrip("/"), services.keys.needed
    return page.show(
        "_data_check.html" if page.partial else "data_part.html",
        part="_data_check.html",
        title="Check",
        file=file,
        refused=refused,
        found=found,
        estimate=found["appraisal"],
        rows=await bad_lines(services, page.owner, some, files, _LONGEST_TEXT),
        at=at,
        pages=pages,
        listed=len(problems),
        can_copy=len(problems) == found["problem_count"] != whole
        and all(it["line"] for it in problems),
        curl=choices.as_curl(url, file.id, services.base.id, keyed=keyed),
        python=choices.as_python(url, file.id, services.base.id, keyed=keyed),
    )


@router.get("/console/data/{file_id}/problems", dependencies=_TRAINS)
async def problems(
    page: CurrentPage,
    services: CurrentServices,
    file: _OwnFile,
    form: Annotated[Literal["csv", "jsonl"], Query(alias="as")] = "csv",
) -> Response:
    """The bad lines, to download."""
    found = await dry_run(services, page.owner, file.id, TrainingChoices())
    files = {"training_file": file.id}
    rows = await bad_lines(services, page.owner, found["problems"], files)
    content, kind = (as_csv(rows), "text/csv") if form == "csv" else (as_jsonl(rows), "text/plain")
    name = quote(f"{file.filename}.problems.{form}")
    headers = {"content-disposition": f"attachment; filename*=utf-8''{name}"}
    return Response(content, media_type=f"{kind}; charset=utf-8", headers=headers)


@router.get("/console/data/{file_id}/lines")
async def lines(
    page: CurrentPage,
    services: CurrentServices,
    file: _OwnFile,
    line: Annotated[int, Query(ge=1, le=LAST_LINE)] = 1,
    limit: Annotated[int, Query(ge=1, le=file_line_endpoints.MOST_LINES)] = _LINES,
    model: Annotated[str, Query(max_length=300)] = "",
    whole: bool = False,
) -> HTMLResponse:
    """Lines as the model sees them in training."""
    found, refused = {"data": [], "has_more": False}, None
    try:
        start = model.strip() or None
        found = await file_line_endpoints.list_lines(
            file.id, services, page.owner, line, limit, start
        )
    except VerandahError as error:
        refused = services.describe(error)
    return page.show(
        "_data_lines.html" if page.partial else "data_part.html",
        part="_data_lines.html",
        title="Lines",
        file=file,
        refused=refused,
        lines=found["data"],
        has_more=found["has_more"],
        line=line,
        limit=limit,
        model=model,
        whole=whole,
        runs=lambda example: shown_runs(example["spans"], whole=whole),
    )


@router.post("/console/data/{file_id}/copy", dependencies=_TRAINS)
async def copy(page: CurrentPage, services: CurrentServices, file: _OwnFile) -> Response:
    """Keep the good lines as a new file, and show that."""
    stored = await copy_without_bad_lines(services, page.owner, file)
    return page.go_to(f"/console/data/{stored.id}")


@router.post("/console/data/{file_id}/train", dependencies=_TRAINS)
async def train(
    page: CurrentPage,
    services: CurrentServices,
    file: _OwnFile,
    choices: Annotated[TrainingChoices, Form()],
) -> Response:
    """Start a job with these choices, and show it."""
    request = choices.request(file.id, services.base.id)
    job = await job_endpoints.create_job(request, services, page.owner)
    return page.go_to(f"/console/jobs/{job['id']}")
