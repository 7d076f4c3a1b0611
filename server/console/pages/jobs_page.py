"""/console/jobs: the list of jobs, and several over one another."""

from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Response

from server.api.app_services import CurrentServices, Services
from server.console.jobs.job_comparison import MOST, differing_options, final_figures
from server.console.jobs.job_progress import JobProgress
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage, Page, needs
from server.errors import InvalidRequest
from server.jobs.queue.job import Job, JobStatus

router = APIRouter(route_class=PageRoute, dependencies=[Depends(needs("jobs"))])

_ROWS = 20
_STATUSES = [it for it in JobStatus if it is not JobStatus.VALIDATING_FILES]


@router.get("/console/jobs")
def jobs(
    page: CurrentPage,
    services: CurrentServices,
    status: Annotated[str, Query()] = "",
    after: Annotated[str, Query()] = "",
) -> Response:
    """The owner's jobs, the newest first."""
    if status and status not in _STATUSES:
        names = ", ".join(_STATUSES)
        raise InvalidRequest(f"status={status[:40]!r} is not one of {names}", param="status")
    chosen = JobStatus(status) if status else None
    found = services.jobs.list(page.owner, after=after or None, limit=_ROWS, status=chosen)
    shown = progress_of(services, found.items)
    query = {key: value for key, value in (("status", status), ("after", after)) if value}
    older = found.has_more and f"?{urlencode(query | {'after': found.items[-1].id})}"
    return page.show(
        "_jobs_table.html" if page.partial else "jobs.html",
        jobs=shown,
        files=file_names(page, found.items),
        statuses=_STATUSES,
        chosen=status,
        here=f"/console/jobs?{urlencode(query)}",
        older=older,
        later=bool(after),
        lives=any(it.unfinished for it in shown),
        most=MOST,
    )


@router.get("/console/jobs/compare")
def compare_jobs(
    page: CurrentPage, services: CurrentServices, job: Annotated[list[str] | None, Query()] = None
) -> Response:
    """Curves of several jobs over one another."""
    ids = [*dict.fromkeys(it for it in job or () if it)]
    if len(ids) > MOST:
        raise InvalidRequest(f"{len(ids)} jobs are too many to compare: choose {MOST} at most")
    found = progress_of(services, [services.jobs.get(page.owner, it) for it in ids])
    names = file_names(page, [it.job for it in found])
    files = [names.get(it.job.training_file, it.job.training_file) for it in found]
    return page.show(
        "_jobs_figures.html" if page.partial else "jobs_compare.html",
        jobs=found,
        options=differing_options(found, files),
        figures=final_figures(found),
        lives=any(it.unfinished for it in found),
        here="/console/jobs/compare?" + urlencode([("job", it) for it in ids]),
        most=MOST,
    )


def progress_of(services: Services, jobs: Sequence[Job]) -> list[JobProgress]:
    """Each job with its last metrics."""
    metrics = services.jobs.newest_metrics(jobs)
    return [JobProgress.of(job, metrics.get(job.id)) for job in jobs]


def file_names(page: Page, jobs: Sequence[Job]) -> dict[str, str]:
    """The names of the jobs' files by id, for who may see files."""
    ids = {it for job in jobs for it in (job.training_file, job.validation_file) if it}
    return page.services.files.names(page.owner, ids) if page.may("files") else {}
