"""/v1/fine_tuning/jobs/{id}/events: a job's events, by pages or as a stream. Knows no training.

Events have the same ids in the stream and in the list, so that a client that was cut off continues
with `Last-Event-ID`. A comment now and then keeps proxies from closing the stream.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from server.api.app_services import CurrentOwner, CurrentServices, Services
from server.api.jobs.job_documents import event_document, page_document
from server.api.sse import DONE, EventStream, event
from server.api.wire import only_known_query
from server.errors import Unavailable
from server.jobs.queue.job import Event, Job

router = APIRouter(
    prefix="/v1/fine_tuning/jobs",
    tags=["fine-tuning"],
    dependencies=[Depends(only_known_query)],
)

_POLL_S = 0.25
_PAGE = 100
_POLLS_PER_HEARTBEAT = 60


@router.get("/{job_id}/events")
async def list_events(
    job_id: str,
    services: CurrentServices,
    owner: CurrentOwner,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
    stream: bool = Query(False, description="all events, oldest first, as they happen"),
    last_event_id: Annotated[str | None, Header(description="with stream: start after it")] = None,
) -> Response:
    """A job's events, the newest first; or, with `stream`, as they happen.

    A stream begins after `last_event_id`, else after `after`, else with the first event. It ends
    with `[DONE]` once the job has ended and all its events are sent.
    """
    if not stream:
        page = await run_in_threadpool(
            services.jobs.events, owner, job_id, after=after, limit=limit
        )
        events = [event_document(item) for item in page.items]
        return JSONResponse(page_document(events, page.has_more))
    job = await run_in_threadpool(services.jobs.get, owner, job_id)
    seen = last_event_id or after
    # Read before the stream starts, so that a wrong id is refused with a status.
    first = await run_in_threadpool(_unseen, services, job, seen)
    return EventStream(_follow(services, job, seen, first), on_end=lambda: None)


async def _follow(
    services: Services, job: Job, seen: str | None, events: list[Event]
) -> AsyncIterator[bytes]:
    for polls in itertools.count(1):
        # The job was read before its events: if it had ended, these are the last.
        for item in events:
            seen = item.id
            yield event(event_document(item), id=item.id)
        if job.status.ended:
            break
        if not services.engine.alive:
            return  # the server stops; a client without [DONE] knows that more may come
        if polls % _POLLS_PER_HEARTBEAT == 0:
            yield b": still running\n\n"
        await asyncio.sleep(_POLL_S)
        try:
            now = await run_in_threadpool(services.jobs.get, job.owner, job.id)
            events = await run_in_threadpool(_unseen, services, job, seen)
            job = now
        except Unavailable:  # the database may come back while the client listens
            events = []
    yield DONE


def _unseen(services: Services, job: Job, seen: str | None) -> list[Event]:
    """The events after `seen`, oldest first."""
    events: list[Event] = []
    while True:
        page = services.jobs.events(job.owner, job.id, after=seen, limit=_PAGE, newest_first=False)
        events.extend(page.items)
        if not page.has_more:
            return events
        seen = page.items[-1].id
