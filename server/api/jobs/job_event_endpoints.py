"""/v1/fine_tuning/jobs/{id}/events: a job's events, by pages or as a stream. Knows no training.

Events have the same ids in the stream and in the list, so that a client that was cut off continues
with `Last-Event-ID`. A comment now and then keeps proxies from closing the stream.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from server.api.app_services import CurrentOwner, CurrentServices, Services
from server.api.jobs.event_hub import PAGE, EventHub
from server.api.jobs.job_documents import event_document, page_document
from server.api.reference.answer_model import answers, streamed
from server.api.reference.job_answers import EventPage, JobEvent
from server.api.reference.parameters import After, JobId
from server.api.sse import DONE, EventStream, event
from server.api.wire import only_known_query
from server.errors import InvalidRequest, Unauthorized, Unavailable
from server.jobs.queue.job import Event, EventType

router = APIRouter(
    prefix="/v1/fine_tuning/jobs",
    tags=["fine-tuning"],
    dependencies=[Depends(only_known_query)],
)

_STREAM = 'id: ftevent-1\ndata: {"object": "fine_tuning.job.event", ...}\n\ndata: [DONE]\n\n'


def event_hub(services: Services) -> EventHub:
    """What the streams of a server share."""
    return EventHub(
        services.jobs, services.threads.reading, _encoded, lambda: services.engine.alive
    )


@router.get(
    "/{job_id}/events",
    responses=streamed(answers(EventPage, fails=(404, 429)), JobEvent, example=_STREAM),
)
async def list_events(
    job_id: JobId,
    request: Request,
    services: CurrentServices,
    owner: CurrentOwner,
    after: After = None,
    limit: int = Query(20, ge=1, le=100, description="How many at most, in a page."),
    stream: bool = Query(False, description="Send all events, oldest first, as they happen."),
    type: EventType | None = Query(None, description="Only events of this type, in a page."),
    last_event_id: Annotated[
        str | None, Header(description="With `stream`: start after it.")
    ] = None,
) -> Response:
    """A job's events, the newest first; or, with `stream`, as they happen.

    A stream begins after `last_event_id`, else after `after`, else with the first event. It ends
    with `[DONE]` once the job has ended and all its events are sent, and early once the key that
    asked for it is refused.
    """
    if stream and type is not None:
        raise InvalidRequest(
            f"type={type} is for pages: leave it out of a stream, which has all events",
            param="type",
        )
    threads, events_of = services.threads.reading, partial(services.jobs.events, owner, job_id)
    if not stream:
        page = await threads.run(events_of, after=after, limit=limit, kind=type)
        events = [event_document(item) for item in page.items]
        return JSONResponse(page_document(events, page.has_more))
    hub = cast(EventHub, request.app.state.event_hub)
    hub.enter(owner)
    try:
        # Read before the stream starts, so that a wrong id is refused with a status.
        newest = await threads.run(events_of, limit=1)
        seen_id = last_event_id or after
        first = await threads.run(events_of, after=seen_id, limit=PAGE, newest_first=False)
    except BaseException:
        hub.leave(owner)
        raise
    seen = newest.items[0].number if newest.items else 0  # counts only if `first` is empty
    batches = _until_done(
        hub.follow(job_id, seen, first.items), partial(_still_may, request, services)
    )
    return EventStream(batches, on_end=partial(hub.leave, owner))


async def _until_done(
    batches: AsyncGenerator[bytes], still_may: Callable[[], Awaitable[bool]]
) -> AsyncGenerator[bytes]:
    """The hub's batches; a client without [DONE] knows that more may come."""
    async with aclosing(batches):
        async for batch in batches:
            if not await still_may():
                return
            yield batch or DONE


async def _still_may(request: Request, services: Services) -> bool:
    """Whether the key that a stream began with may still read it: it may have been revoked since.
    While the database is away, it may as before."""
    try:
        header = request.headers.get("authorization")
        principal = await services.keys.principal(header, services.threads.keys.run)
    except Unauthorized:
        return False
    except Unavailable:
        return True
    return principal.may("jobs")


def _encoded(item: Event) -> bytes:
    return event(event_document(item), id=item.id)
