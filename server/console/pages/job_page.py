"""/console/jobs/ID: one job, while it runs and after."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from server.api.app_services import CurrentServices, Services
from server.api.jobs import job_endpoints
from server.api.jobs.job_documents import Document
from server.console.jobs.job_options import as_python, job_options
from server.console.jobs.job_progress import JobProgress
from server.console.page_route import PageRoute
from server.console.pages.jobs_page import file_names, progress_of
from server.console.rendering import CurrentPage, Page, needs
from server.jobs.queue.job import JobStatus

router = APIRouter(route_class=PageRoute, dependencies=[Depends(needs("jobs"))])

_EVENTS = 50
_CHECKPOINTS = 100


@router.get("/console/jobs/{job_id}")
def job(page: CurrentPage, services: CurrentServices, job_id: str) -> Response:
    """The page; for its script, the part that changes."""
    shown = _progress(page, services, job_id)
    if page.partial:
        return _state(page, services, shown)
    newest = services.jobs.events(page.owner, job_id, limit=1).items  # first: none is missed
    events = services.jobs.events(page.owner, job_id, kind="message", limit=_EVENTS)
    return page.show(
        "job.html",
        it=shown,
        notice=_notice(services, shown),
        options=job_options(shown.job),
        files=file_names(page, [shown.job]),
        code=as_python(shown.job, str(page.request.base_url).rstrip("/")),
        events=events.items[::-1],
        older=events.items[-1].id if events.has_more else "",
        newest=newest[0].id if newest else "",
        checkpoints=services.jobs.checkpoints(page.owner, job_id, limit=_CHECKPOINTS).items,
    )


@router.get("/console/jobs/{job_id}/checkpoints")
def checkpoints(page: CurrentPage, services: CurrentServices, job_id: str) -> Response:
    """The table of checkpoints alone."""
    found = services.jobs.checkpoints(page.owner, job_id, limit=_CHECKPOINTS)
    shown = _progress(page, services, job_id)
    return page.show("_job_checkpoints.html", it=shown, checkpoints=found.items)


@router.get("/console/jobs/{job_id}/events")
def earlier_events(
    page: CurrentPage, services: CurrentServices, job_id: str, after: Annotated[str, Query()] = ""
) -> Response:
    """The messages before the event `after`, for the top of the log."""
    found = services.jobs.events(
        page.owner, job_id, after=after or None, kind="message", limit=_EVENTS
    )
    older = found.items[-1].id if found.has_more else ""
    shown = _progress(page, services, job_id)
    return page.show("_job_events.html", it=shown, events=found.items[::-1], older=older)


@router.post("/console/jobs/{job_id}/cancel")
def cancel(page: CurrentPage, services: CurrentServices, job_id: str) -> Response:
    """End the job."""
    return _changed(page, services, job_id, job_endpoints.cancel_job)


@router.post("/console/jobs/{job_id}/pause")
def pause(page: CurrentPage, services: CurrentServices, job_id: str) -> Response:
    """Have the job saved, and stopped until it is resumed."""
    return _changed(page, services, job_id, job_endpoints.pause_job)


@router.post("/console/jobs/{job_id}/resume")
def resume(page: CurrentPage, services: CurrentServices, job_id: str) -> Response:
    """Queue the job again."""
    return _changed(page, services, job_id, job_endpoints.resume_job)


def _changed(
    page: Page, services: Services, job_id: str, change: Callable[..., Document]
) -> Response:
    change(job_id, services, page.owner)
    if not page.partial:
        return page.go_to(f"/console/jobs/{job_id}")
    return _state(page, services, _progress(page, services, job_id))


def _state(page: Page, services: Services, shown: JobProgress) -> Response:
    return page.show("_job_state.html", it=shown, notice=_notice(services, shown))


def _progress(page: Page, services: Services, job_id: str) -> JobProgress:
    return progress_of(services, [services.jobs.get(page.owner, job_id)])[0]


def _notice(services: Services, shown: JobProgress) -> str:
    """Why a waiting job may wait for long."""
    waits = shown.job.status is JobStatus.QUEUED
    return job_endpoints.worker_notice(services) if waits else ""
