"""Asks a server over HTTP from many connections at once, in processes of their own.

Raw sockets: a client library would be slower than the server. Each connection asks again as soon
as it was answered.
"""

import asyncio
import json
import multiprocessing
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

_EVENT, _DONE, _END = b"data: ", b"data: [DONE]", b"0\r\n\r\n"
_LENGTH = b"content-length: "


@dataclass(frozen=True)
class Load:
    """What every connection asks for, for how long, and which part of that counts.

    `vocab_size` bounds the random token ids of prompts. In the first round answers have random
    lengths, so that later ones do not all begin at once.
    """

    streams: int
    prompt_tokens: int
    answer_tokens: int
    vocab_size: int
    stream: bool
    warm_up_s: float
    seconds: float
    chat: bool = False  # a message of as many letters instead of token ids

    def prompt(self, draw: random.Random) -> list[int]:
        return [draw.randrange(8, self.vocab_size) for _ in range(self.prompt_tokens)]

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def question(self, draw: random.Random) -> dict[str, object]:
        """The fields of the request's body."""
        if not self.chat:
            return {"prompt": self.prompt(draw)}
        letters = "".join(draw.choices("abcdefgh ", k=self.prompt_tokens))
        return {"messages": [{"role": "user", "content": letters}]}


@dataclass
class LoadResult:
    """What clients received in the time that counts; times in seconds."""

    answers: int = 0
    events: int = 0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, other: "LoadResult") -> None:
        self.answers += other.answers
        self.events += other.events
        self.first += other.first
        self.gaps += other.gaps
        self.failures += other.failures


class _Asker(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load, result: LoadResult, start: float, seed: int) -> None:
        self._load = load
        self._result = result
        self._draw = random.Random(seed)
        self._from = start + load.warm_up_s
        self._until = self._from + load.seconds
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers = 0
        self._sent_at = self._last = 0.0
        self._tail = b""
        self._expected: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._fail(f"the connection ended: {error}")

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._load.stream:
            self._streamed(data, now)
        else:
            self._whole(data, now)

    def _ask(self) -> None:
        load = self._load
        length = load.answer_tokens
        if not self._answers:
            length = self._draw.randint(1, length)
        body = json.dumps(
            {
                "model": "base",
                **load.question(self._draw),
                "max_tokens": length,
                "temperature": 0,
                "ignore_eos": True,
                "stream": load.stream,
            }
        ).encode()
        head = (
            f"POST {load.path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self._tail, self._expected, self._last = b"", None, 0.0
        self._sent_at = time.perf_counter()
        self._transport.write(head.encode() + body)

    def _streamed(self, data: bytes, now: float) -> None:
        """A mark may be split over two pieces, so the end of the piece before is searched again."""
        begin = (self._tail or data)[:16]
        if begin.startswith(b"HTTP/") and b" 200 " not in begin:
            return self._whole(data, now)
        seen = self._tail + data
        events = seen.count(_EVENT) - self._tail.count(_EVENT)
        if events and self._counts(now):
            self._result.events += events
            since = self._last or self._sent_at
            (self._result.gaps if self._last else self._result.first).append(now - since)
        if events:
            self._last = now
        self._tail = seen[-(len(_DONE) + len(_END) + 8) :]
        if _DONE in self._tail and self._tail.endswith(_END):
            self._answered(now)
        return None

    def _whole(self, data: bytes, now: float) -> None:
        self._tail += data
        if self._expected is None:
            head, end, _ = self._tail.partition(b"\r\n\r\n")
            if not end:
                return None
            length = head.lower().partition(_LENGTH)[2].partition(b"\r\n")[0]
            self._expected = len(head) + len(end) + int(length)
        if len(self._tail) < self._expected:
            return None
        if b" 200 " not in self._tail[:16]:
            return self._fail(self._tail[:500].decode(errors="replace"))
        return self._answered(now)

    def _answered(self, now: float) -> None:
        self._result.answers += self._counts(now)
        self._answers += 1
        if now < self._until:
            self._ask()
        else:
            self.done.set_result(None)
            self._transport.close()

    def _counts(self, now: float) -> bool:
        return self._from <= now < self._until

    def _fail(self, reason: str) -> None:
        self._result.failures.append(reason)
        self.done.set_result(None)
        self._transport.close()


async def _ask_all(port: int, load: Load, start: float, seeds: Sequence[int]) -> LoadResult:
    result = LoadResult()
    loop = asyncio.get_running_loop()
    askers = [_Asker(load, result, start, seed) for seed in seeds]
    waiting = iter(askers)
    for _ in askers:
        await loop.create_connection(waiting.__next__, "127.0.0.1", port)
    await asyncio.gather(*(asker.done for asker in askers))
    return result


def _client(
    pipe: "Connection[LoadResult | None, float]", port: int, load: Load, seeds: Sequence[int]
) -> None:
    pipe.send(None)
    start = pipe.recv()
    pipe.send(asyncio.run(_ask_all(port, load, start, seeds)))


def ask(
    port: int, load: Load, processes: int, watch: Callable[[], float] = time.process_time
) -> tuple[LoadResult, float]:
    """Put the load on the server at `port`.

    Returns the result, and by how much `watch` grew in the time that counts.

    Raises:
        RuntimeError: an answer was not 200, or broke off.
    """
    context = multiprocessing.get_context("spawn")
    pipes, clients = [], []
    for number in range(processes):
        ours, theirs = context.Pipe()
        seeds = range(number, load.streams, processes)
        clients.append(context.Process(target=_client, args=(theirs, port, load, seeds)))
        clients[-1].start()
        theirs.close()  # else a client that dies would be waited for
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    start = time.perf_counter()  # one clock for all processes of a machine
    for pipe in pipes:
        pipe.send(start)
    time.sleep(load.warm_up_s)
    before = watch()
    time.sleep(load.seconds)
    grown, total = watch() - before, LoadResult()
    for pipe in pipes:
        total.add(pipe.recv())
    for client in clients:
        client.join()
    if total.failures:
        raise RuntimeError(f"{len(total.failures)} answers failed: {total.failures[0]}")
    return total, grown
