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
    """A job of three events, whose database is away for the second and third question."""

    def __init__(self) -> None:
        self.asked = 0

    def events_after(self, _job: str, seen: int, _most: int) -> Sequence[Event]:
        self.asked += 1
        if self.asked in (2, 3):
            raise Unavailable("away")
        events = [
            Event(f"e{n}", "job", 0, "info", "message", f"event {n}", None, n) for n in (1, 2, 3)
        ]
        return [event for event in events if event.number > seen][:1]

    def news(self, jobs: Sequence[str]) -> dict[str, News]:
        return {job: News(last_event=3, ended=True) for job in jobs}


def test_a_stream_that_joins_while_the_database_is_away_misses_nothing() -> None:
    async def run() -> bytes:
        jobs = cast(JobQueue, _Jobs())
        hub = EventHub(jobs, ThreadGroup(1, "read"), lambda it: it.message.encode(), lambda: True)
        return b"|".join([batch async for batch in hub.follow("job", 0, ())])

    assert asyncio.run(asyncio.wait_for(run(), 30)) == b"event 1|event 2|event 3|"
