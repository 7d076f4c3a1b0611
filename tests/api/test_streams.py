"""Chunks made the fast way are those of the plain way; who falls behind catches up in one chunk."""

import asyncio
import random
from collections.abc import Iterator
from collections.abc import Sequence as Seq

import pytest
from starlette.types import Message, Receive

from server.api.answers import Answers, ClientGone, News, Wakes, joined
from server.api.asking import Asked
from server.api.chat import ChatShape
from server.api.completions import CompletionShape, Echo
from server.api.replies import Chunks, Shape, Transcript
from server.api.sse import event
from server.engine.sequence import FinishReason, SamplingParams
from server.scheduler.request import Delta, Generation, TokenPiece
from tests.api.fakes import ByteTokenizer, FakeLoop, score

PROMPTS = (b"one", b"two")
N = 2


def asked(served_name: str = "base") -> Asked:
    params = SamplingParams(max_tokens=9)
    prompts = tuple(Generation("r", "o", tuple(p), params, n=N) for p in PROMPTS)
    return Asked("cmpl-1", 1_700_000_000, served_name, prompts)


def shape(kind: str, logprobs: bool) -> Shape:
    if kind == "chat":
        return ChatShape(ByteTokenizer(), logprobs=logprobs)
    echoes = [Echo(tuple(p), tuple(chr(b) for b in p)) for p in PROMPTS]
    shown = echoes if kind == "echo" else ()
    return CompletionShape(ByteTokenizer(), logprobs=logprobs, echoes=shown, n=N)


def answer(draw: random.Random, prompt: int, index: int) -> Iterator[News]:
    """Deltas with and without text, with characters that JSON escapes, and an end."""
    for place in range(6):
        text = draw.choice(["", 'a"b', "é😀", "\0", "\u2028\n", " word"])
        token = TokenPiece(ord("x"), text, score(ord("x")))
        finish = FinishReason.LENGTH if place == 5 else None
        yield News(prompt, Delta(index, text, (token,), finish=finish))


def batches(seed: int) -> list[list[News]]:
    """All answers' news, mixed, each answer's in order."""
    draw = random.Random(seed)
    waiting = [list(answer(draw, prompt, index)) for prompt in range(2) for index in range(N)]
    news = []
    while any(waiting):
        news.append(draw.choice([each for each in waiting if each]).pop(0))
    return [[one] for one in news]


def plainly(labels: dict[str, object], batch: Seq[News], shape: Shape) -> bytes:
    choices = [
        choice
        for news in batch
        for choice in shape.chunks(news.prompt * N + news.delta.index, news.delta)
    ]
    return b"".join(event({**labels, "choices": [choice]}) for choice in choices)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("kind", ["chat", "completion", "echo"])
def test_frames_hold_what_whole_chunks_do(kind: str, logprobs: bool, seed: int) -> None:
    labels = asked('a"\\u0000"').labels("chunk") | {"usage": None}
    chunks, plain = Chunks(labels, asked(), shape(kind, logprobs)), shape(kind, logprobs)
    for batch in batches(seed):
        assert chunks.of(batch) == plainly(labels, batch, plain)


@pytest.mark.parametrize("seed", range(5))
def test_joined_news_say_the_same(seed: int) -> None:
    news = [one for batch in batches(seed) for one in batch]
    together = joined(news)
    assert len(together) == len({(one.prompt, one.delta.index) for one in news})
    for one in together:
        mine = [n.delta for n in news if (n.prompt, n.delta.index) == (one.prompt, one.delta.index)]
        heard, at_once = Transcript(), Transcript()
        for delta in mine:
            heard.add(delta)
        at_once.add(one.delta)
        assert at_once == heard


def test_what_waited_is_one_chunk_for_each_answer() -> None:
    told = Chunks(asked().labels("chunk"), asked(), shape("completion", False))
    news = [one for batch in batches(0) for one in batch]
    assert told.of(news).count(b"data: ") == len(PROMPTS) * N


async def stays() -> Message:
    """What a request's `receive` does while its client is there."""
    await asyncio.Event().wait()
    raise AssertionError


def opened(wakes: Wakes, count: int, receive: Receive = stays) -> list[Answers]:
    """Streams of one answer each."""
    streams = [
        Answers(FakeLoop(), wakes, receive, ends_only=False, timeout_s=9) for _ in range(count)
    ]
    for stream in streams:
        stream._open = 1
    return streams


def test_a_step_wakes_the_event_loop_once() -> None:
    async def listen() -> tuple[int, list[int]]:
        loop, wakes, calls = asyncio.get_running_loop(), Wakes(), 0
        call_soon = loop.call_soon_threadsafe

        def counted(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            return call_soon(*arguments)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign,assignment]
        streams = opened(wakes, 7)
        for stream in streams:
            stream._hear(0, Delta(0, "a"))
            stream._hear(0, Delta(0, "b", finish=FinishReason.STOP))
        heard = [len(await stream.next()) for stream in streams]
        for stream in streams:
            stream.close()
        return calls, heard

    assert asyncio.run(listen()) == (1, [2] * 7)


def test_few_streams_are_told_each_token_and_many_several_in_one_piece() -> None:
    async def pieces(count: int, tokens: int, pace_s: float) -> tuple[list[int], int]:
        """How many tokens each piece of one of `count` streams had, and how often it was late."""
        wakes = Wakes()
        streams = opened(wakes, count)
        heard: list[int] = []

        async def listen() -> None:
            while sum(heard) < tokens:
                heard.append(len(await streams[0].next()))

        listener, late = asyncio.create_task(listen()), 0
        for place in range(tokens):
            told = len(heard)
            finish = FinishReason.STOP if place == tokens - 1 else None
            streams[0]._hear(0, Delta(0, "a", finish=finish))
            await asyncio.sleep(pace_s)
            late += len(heard) == told and place in (0, tokens - 1)
        await listener
        for stream in streams:
            stream.close()
        assert wakes.streams == 0
        return heard, late

    assert asyncio.run(pieces(1, 20, 0.003)) == ([1] * 20, 0)
    crowded, late = asyncio.run(pieces(1000, 20, 0.01))  # a pause of 125 ms
    assert len(crowded) <= 4 and sum(crowded) == 20
    assert crowded[0] == 1 and late == 0, "the first token and the end wait for nobody"


def test_who_waits_for_news_hears_that_the_client_went_away() -> None:
    async def leave() -> Message:
        return {"type": "http.disconnect"}

    async def listen() -> None:
        (stream,) = opened(Wakes(), 1, leave)
        try:
            with pytest.raises(ClientGone):
                await asyncio.wait_for(stream.next(), 5)
        finally:
            stream.close()

    asyncio.run(listen())
