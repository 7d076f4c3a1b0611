"""Streams of events lose none, whatever the database does meanwhile."""

import asyncio
from collections.abc import Sequence
from typing import cast

from server.api.jobs.event_hub import EventHub
from server.api.threads import ThreadGroup
from server.errors import Unavailable
from server.jobs.queue.job import Event
from server.jobs.queue.job_queue import JobQueue, News


class _Jobs:
    """A job of three events. The database is away for the next `failures` questions for them."""

    def __init__(self) -> None:
        self.failures = 0
        self.ended = False

    def events_after(self, _job: str, seen: int, _most: int) -> Sequence[Event]:
        if self.failures:
            self.failures -= 1
            raise Unavailable("away")
        events = [
            Event(f"e{n}", "job", 0, "info", "message", f"event {n}", None, n) for n in (1, 2, 3)
        ]
        return [event for event in events if event.number > seen]

    def news(self, jobs: Sequence[str]) -> dict[str, News]:
        return {job: News(last_event=3, ended=self.ended) for job in jobs}


def test_a_stream_that_joins_while_the_database_is_away_misses_nothing() -> None:
    async def run() -> list[bytes]:
        jobs = _Jobs()
        threads = ThreadGroup(1, "read")
        hub = EventHub(cast(JobQueue, jobs), threads, lambda it: it.message.encode(), lambda: True)
        ahead = asyncio.create_task(_all(hub, 3))  # it has all events
        await asyncio.sleep(0.1)
        jobs.failures = 2
        joining = asyncio.create_task(_all(hub, 0))
        await asyncio.sleep(0.1)
        jobs.ended = True
        batches = await joining
        await ahead
        return batches

    batches = asyncio.run(asyncio.wait_for(run(), 30))
    assert batches == [b"event 1event 2event 3", b""]


async def _all(hub: EventHub, seen: int) -> list[bytes]:
    return [batch async for batch in hub.follow("job", seen, ())]
