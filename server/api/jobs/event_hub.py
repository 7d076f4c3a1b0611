"""Follows jobs for all streams of this process: one poll asks for all of them. Knows no HTTP.

A stream gets each event as bytes that all streams of the job share, so that two hundred of them
cost little more than one. What a client has not read is bounded: a stream that falls far behind
ends, and its client may continue where it was cut off.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from typing import Final

from server.api.threads import ThreadGroup
from server.errors import QueueFull, Unavailable
from server.jobs.queue.job import Event
from server.jobs.queue.job_queue import JobQueue, News

log = logging.getLogger(__name__)

MAX_STREAMS: Final = 512
MAX_STREAMS_OF_OWNER: Final = 256
PAGE: Final = 100
_POLL_S = 0.25
_COMMENT_S = 15.0
_MOST_UNREAD: Final = 500  # events
_RETRY_AFTER_S: Final = 10.0
COMMENT: Final = b": still running\n\n"

Encode = Callable[[Event], bytes]


class _Topic:
    """A job that is followed: the number of its last event that its followers have."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.ended = False
        self.followers: set[_Follower] = set()


class _Follower:
    """One stream: what it has not sent yet."""

    def __init__(self) -> None:
        self.unread: deque[tuple[int, bytes]] = deque()
        self.news = asyncio.Event()
        self.cut = False


class EventHub:
    """The streams of events of one event loop.

    Args:
        threads: in which to read the database.
        encode: makes the bytes of an event.
        serving: whether the server goes on; when it stops, all streams end.
    """

    def __init__(
        self, jobs: JobQueue, threads: ThreadGroup, encode: Encode, serving: Callable[[], bool]
    ) -> None:
        self._jobs = jobs
        self._threads = threads
        self._encode = encode
        self._serving = serving
        self._topics: dict[str, _Topic] = {}
        self._streams: Counter[str] = Counter()
        self._poll: asyncio.Task[None] | None = None

    def enter(self, owner: str) -> None:
        """Count a new stream of an owner; `leave` when it ends. Raises QueueFull."""
        mine, every = self._streams[owner], self._streams.total()
        if mine >= MAX_STREAMS_OF_OWNER or every >= MAX_STREAMS:
            raise QueueFull(
                f"{mine} streams of events are open for you and {every} in all, of at most "
                f"{MAX_STREAMS_OF_OWNER} and {MAX_STREAMS}: close one, or ask for the events "
                "without stream=true",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._streams[owner] += 1

    def leave(self, owner: str) -> None:
        """A stream of an owner has ended."""
        self._streams[owner] -= 1
        if not self._streams[owner]:
            del self._streams[owner]

    async def follow(self, job_id: str, seen: int, first: Sequence[Event]) -> AsyncGenerator[bytes]:
        """The events of a job as they happen, and comments now and then. It ends after the last
        event of the job, or early: then `b""` is not its last item.

        Args:
            seen: number of the last event that the client has. first: those after it, a page.
        """
        events = first
        while events:
            yield b"".join(map(self._encode, events))
            seen = events[-1].number
            events = await self._page(job_id, seen)
        with self._following(job_id, seen) as follower:
            # What came between the last page and now: another stream may have made the topic.
            while events := await self._page(job_id, seen):
                yield b"".join(map(self._encode, events))
                seen = events[-1].number
            async for batch in self._batches(job_id, follower, seen):
                yield batch

    async def _batches(self, job_id: str, follower: _Follower, seen: int) -> AsyncIterator[bytes]:
        while True:
            follower.news.clear()
            batch = [data for number, data in follower.unread if number > seen]
            seen = max(seen, follower.unread[-1][0]) if follower.unread else seen
            follower.unread.clear()
            if batch:
                yield b"".join(batch)
                continue
            if follower.cut or not self._serving():
                return
            if self._topics[job_id].ended:
                yield b""
                return
            try:
                async with asyncio.timeout(_COMMENT_S):
                    await follower.news.wait()
            except TimeoutError:
                yield COMMENT

    async def _page(self, job_id: str, seen: int) -> Sequence[Event]:
        """The events after `seen`, at most so many. It waits for a database that is away: the topic
        may be ahead already, and would not bring what was missed here.
        """
        while self._serving():
            try:
                return await self._threads.run(self._jobs.events_after, job_id, seen, PAGE)
            except Unavailable:
                await asyncio.sleep(_POLL_S)
        return ()

    @contextmanager
    def _following(self, job_id: str, seen: int) -> Iterator[_Follower]:
        topic = self._topics.setdefault(job_id, _Topic(seen))
        follower = _Follower()
        topic.followers.add(follower)
        if self._poll is None or self._poll.done():
            # For all streams, so it has no turn among the owner's calls who opened the first one.
            loop = asyncio.get_running_loop()
            self._poll = loop.create_task(self._poll_all(), context=Context())
        try:
            yield follower
        finally:
            topic.followers.discard(follower)
            if not topic.followers:
                del self._topics[job_id]

    async def _poll_all(self) -> None:
        """Ask for the news of all jobs, until none is followed."""
        while self._topics:
            try:
                news = await self._threads.run(self._jobs.news, [*self._topics])
                for job_id, new in news.items():
                    await self._take(job_id, new)
            except Unavailable:  # the database may come back while the clients listen
                pass
            except Exception:  # one job's fault must not end the streams of all
                log.exception("the news of jobs could not be read")
            if not self._serving():
                self._wake_all()
            await asyncio.sleep(_POLL_S)

    async def _take(self, job_id: str, new: News) -> None:
        topic = self._topics.get(job_id)
        if topic is None:
            return
        events: Sequence[Event] = ()
        if new.last_event > topic.position:
            events = await self._threads.run(self._jobs.events_after, job_id, topic.position, PAGE)
        for event in events:
            topic.position = event.number
            data = self._encode(event)
            for follower in topic.followers:
                follower.unread.append((event.number, data))
        # With more to come, the end is told at a later poll.
        topic.ended = new.ended and topic.position >= new.last_event
        for follower in topic.followers:
            follower.cut |= len(follower.unread) > _MOST_UNREAD
            if follower.cut:
                follower.unread.clear()
            if events or topic.ended or follower.cut:
                follower.news.set()

    def _wake_all(self) -> None:
        for topic in self._topics.values():
            for follower in topic.followers:
                follower.news.set()
