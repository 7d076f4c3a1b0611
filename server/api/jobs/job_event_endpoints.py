"""A job's events, page by page or as they happen.

The stream gives each event the id that it has in the list, so that a client that was cut off goes
on where it was (`Last-Event-ID`); a comment now and then keeps proxies from closing it.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from server.api.app_services import CurrentOwner, GivenServices, Services
from server.api.jobs.job_documents import event_document, page_document
from server.api.sse import DONE, EventStream, event
from server.errors import Unavailable
from server.jobs.queue.job import Event, Job

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

_POLL_S = 0.25
_PAGE = 100
_POLLS_PER_HEARTBEAT = 60


@router.get("/{job_id}/events")
async def list_events(
    job_id: str,
    services: GivenServices,
    owner: CurrentOwner,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
    stream: bool = Query(False, description="all events, oldest first, as they happen"),
    last_event_id: Annotated[str | None, Header(description="with stream: go on from it")] = None,
) -> Response:
    """What a job has told, the newest first; or, with `stream`, as it tells it.

    A stream begins after `last_event_id`, or after `after`, or with the first event, and ends with
    `[DONE]` once the job has ended and everything was told.
    """
    if not stream:
        page = await run_in_threadpool(
            services.jobs.events, owner, job_id, after=after, limit=limit
        )
        return JSONResponse(
            page_document([event_document(told) for told in page.items], page.has_more)
        )
    job = await run_in_threadpool(services.jobs.get, owner, job_id)
    seen = last_event_id or after
    first = await run_in_threadpool(_unseen, services, job, seen)  # a bad id is refused before 200
    return EventStream(_follow(services, job, seen, first), on_end=lambda: None)


async def _follow(
    services: Services, job: Job, seen: str | None, news: list[Event]
) -> AsyncIterator[bytes]:
    for polls in itertools.count(1):
        # The job was looked at before its events: when it had ended, none comes after these.
        for told in news:
            seen = told.id
            yield event(event_document(told), id=told.id)
        if job.status.ended:
            break
        if not services.engine.alive:
            return  # the server stops; without [DONE], the client knows that there may be more
        if polls % _POLLS_PER_HEARTBEAT == 0:
            yield b": still there\n\n"
        await asyncio.sleep(_POLL_S)
        try:
            now = await run_in_threadpool(services.jobs.get, job.owner, job.id)
            news = await run_in_threadpool(_unseen, services, job, seen)
            job = now
        except Unavailable:  # it may come back while the client listens
            news = []
    yield DONE


def _unseen(services: Services, job: Job, seen: str | None) -> list[Event]:
    """Events later than `seen`, oldest first."""
    news: list[Event] = []
    while True:
        page = services.jobs.events(job.owner, job.id, after=seen, limit=_PAGE, newest_first=False)
        news.extend(page.items)
        if not page.has_more:
            return news
        seen = page.items[-1].id
