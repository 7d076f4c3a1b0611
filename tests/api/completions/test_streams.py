"""Chunks made the fast way are those of the plain way; who falls behind catches up in one chunk."""

import asyncio
import random
from collections.abc import Iterator

import pytest
from starlette.types import Message, Receive

from server.api.completions.chat_completion import ChatShape
from server.api.completions.delivery import (
    Answers,
    ChoiceUpdate,
    ClientGone,
    StreamWaker,
    Updates,
    merged,
)
from server.api.completions.generation import CheckedRequest
from server.api.completions.replies import Chunks, Shape, Transcript
from server.api.completions.text_completion import CompletionShape, Echo
from server.api.sse import event
from server.engine.sequence import FinishReason, SamplingParams
from server.errors import Unavailable
from server.scheduler.intake import Handle
from server.scheduler.request import Generation, Listener, LoopStats, TextDelta, TokenPiece
from tests.api.fakes import ByteTokenizer, score

PROMPTS = (b"one", b"two")
N = 2


def asked(served_name: str = "base") -> CheckedRequest:
    params = SamplingParams(max_tokens=9)
    prompts = tuple(Generation("r", "o", tuple(p), params, n=N) for p in PROMPTS)
    return CheckedRequest("cmpl-1", served_name, prompts, created=1_700_000_000)


def shape(kind: str, logprobs: bool) -> Shape:
    if kind == "chat":
        return ChatShape(ByteTokenizer(), logprobs=logprobs)
    echoes = [Echo(tuple(p), tuple(chr(b) for b in p)) for p in PROMPTS]
    shown = echoes if kind == "echo" else ()
    return CompletionShape(ByteTokenizer(), logprobs=logprobs, echoes=shown, n=N)


def answer(draw: random.Random, prompt: int, index: int) -> Iterator[ChoiceUpdate]:
    """Deltas with and without text, with characters that JSON escapes, and an end."""
    for place in range(6):
        text = draw.choice(["", 'a"b', "é😀", "\0", "\u2028\n", " word"])
        token = TokenPiece(ord("x"), text, score(ord("x")))
        finish = FinishReason.LENGTH if place == 5 else None
        yield ChoiceUpdate(prompt * N + index, TextDelta(index, text, (token,), finish=finish), 1)


def news_of(seed: int) -> list[ChoiceUpdate]:
    """All answers' news, mixed, each answer's in order."""
    draw = random.Random(seed)
    waiting = [list(answer(draw, prompt, index)) for prompt in range(2) for index in range(N)]
    news = []
    while any(waiting):
        news.append(draw.choice([each for each in waiting if each]).pop(0))
    return news


def plainly(labels: dict[str, object], news: ChoiceUpdate, shape: Shape) -> bytes:
    choices = shape.chunks(news.choice, news.delta)
    return b"".join(event({**labels, "choices": [choice]}) for choice in choices)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("kind", ["chat", "completion", "echo"])
def test_frames_hold_what_whole_chunks_do(kind: str, logprobs: bool, seed: int) -> None:
    labels = asked('a"\\u0000"').labels("chunk") | {"usage": None}
    chunks, plain = Chunks(labels, shape(kind, logprobs)), shape(kind, logprobs)
    for news in news_of(seed):
        assert chunks.of([news]) == plainly(labels, news, plain)


def heard_of(draw: random.Random) -> Updates:
    """The updates of an answer: some tokens by their text alone."""
    deltas = [news.delta for news in answer(draw, 0, 1)]
    return [delta.text if draw.random() < 0.6 else delta for delta in deltas[:-1]] + deltas[-1:]


@pytest.mark.parametrize("seed", range(20))
def test_what_was_heard_is_told_as_one_delta(seed: int) -> None:
    heard = heard_of(random.Random(seed))
    if seed % 2:
        heard.pop()
    one_by_one, at_once = Transcript(), Transcript()
    for each in heard:
        one_by_one.add(merged(1, [each]))
    news = merged(1, heard)
    at_once.add(news)
    assert at_once == one_by_one
    assert at_once.num_tokens == len(heard)
    assert (news.choice, news.delta.finish) == (1, None if seed % 2 else FinishReason.LENGTH)


async def stays() -> Message:
    """What a request's `receive` does while its client is there."""
    await asyncio.Event().wait()
    raise AssertionError


class Mute:
    """An engine that leaves what is told to the test."""

    alive, max_context, max_answers = True, 256, 576

    def __init__(self) -> None:
        self.listeners: list[Listener] = []

    def submit(self, request: Generation, listener: Listener) -> Handle:
        self.listeners.append(listener)
        return Handle(())

    def cancel(self, handle: Handle) -> None:
        pass

    def stats(self) -> LoopStats:
        return LoopStats()


def opened(
    waker: StreamWaker, count: int, receive: Receive = stays
) -> list[tuple[Answers, Listener]]:
    """Streams of one answer each, and who hears it."""
    streams = []
    for _ in range(count):
        engine = Mute()
        stream = Answers(engine, waker, receive, ends_only=False, timeout_s=9)
        stream.submit(Generation("r", "o", (1,), SamplingParams(max_tokens=9)))
        streams.append((stream, engine.listeners[0]))
    return streams


def test_a_step_wakes_the_event_loop_once() -> None:
    async def listen() -> tuple[int, list[str]]:
        loop, waker, calls = asyncio.get_running_loop(), StreamWaker(), 0
        call_soon = loop.call_soon_threadsafe

        def counted(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            return call_soon(*arguments)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign,assignment]
        streams = opened(waker, 7)
        for _, listener in streams:
            listener.hear(TextDelta(0, "a"))
            listener.hear(TextDelta(0, "b", finish=FinishReason.STOP))
            listener.flush()
        told = [(await stream.next())[0].delta.text for stream, _ in streams]
        for stream, _ in streams:
            stream.close()
        return calls, told

    assert asyncio.run(listen()) == (1, ["ab"] * 7)


def test_few_streams_are_told_each_token_and_many_several_in_one_piece() -> None:
    async def pieces(count: int, tokens: int, pace_s: float) -> tuple[list[int], int]:
        """How many tokens each piece of one of `count` streams had, and how often it was late."""
        waker = StreamWaker()
        streams = opened(waker, count)
        stream, listener = streams[0]
        heard: list[int] = []

        async def listen() -> None:
            while sum(heard) < tokens:
                heard.append(len((await stream.next())[0].delta.text))

        listening, late = asyncio.create_task(listen()), 0
        for place in range(tokens):
            told = len(heard)
            finish = FinishReason.STOP if place == tokens - 1 else None
            listener.hear(TextDelta(0, "a", finish=finish))
            listener.flush()
            await asyncio.sleep(pace_s)
            late += len(heard) == told and place in (0, tokens - 1)
        await listening
        for each, _ in streams:
            each.close()
        assert not waker.streams
        return heard, late

    assert asyncio.run(pieces(1, 20, 0.003)) == ([1] * 20, 0)
    crowded, late = asyncio.run(pieces(1000, 20, 0.01))  # a pause of 125 ms
    assert len(crowded) <= 4 and sum(crowded) == 20
    assert crowded[0] == 1 and late == 0, "the first token and the end wait for nobody"


def test_plain_tokens_are_heard_as_texts_in_their_place() -> None:
    """As from an engine in a process of its own, from another thread."""

    async def listen() -> list[ChoiceUpdate]:
        ((stream, listener),) = opened(StreamWaker(), 1)
        take = listener.token_sink(0)
        listener.hear(TextDelta(0, "_", (TokenPiece(5, "_"),)))

        def tell() -> None:
            for text in "abcdef":
                take(5, text)
            listener.flush()
            listener.hear(TextDelta(0, "g", (TokenPiece(5, "g", score(5)),)))
            take(5, "h")
            listener.hear(TextDelta(0, "i", (TokenPiece(5, "i"),), finish=FinishReason.STOP))
            listener.flush()

        telling, news = asyncio.create_task(asyncio.to_thread(tell)), []
        while not stream.complete:
            news += await stream.next()
        await telling
        stream.close()
        return news

    news = asyncio.run(listen())
    assert "".join(each.delta.text for each in news) == "_abcdefghi"
    assert sum(each.num_tokens for each in news) == 10


def test_what_came_before_a_failure_is_told_first() -> None:
    async def listen() -> str:
        ((stream, listener),) = opened(StreamWaker(), 1)
        listener.hear(TextDelta(0, "a"))
        listener.hear(TextDelta(0, finish=FinishReason.ERROR, error=Unavailable("gone")))
        try:
            (news,) = await stream.next()
            with pytest.raises(Unavailable, match="gone"):
                await stream.next()
        finally:
            stream.close()
        return news.delta.text

    assert asyncio.run(listen()) == "a"


def test_who_waits_for_ends_is_woken_by_nothing_else() -> None:
    async def listen() -> tuple[list[bool], str]:
        engine, waker = Mute(), StreamWaker()
        answers = Answers(engine, waker, stays, ends_only=True, timeout_s=9)
        answers.submit(Generation("r", "o", (1,), SamplingParams(max_tokens=9)))
        called: list[bool] = []
        listener = engine.listeners[0]
        waiting = asyncio.create_task(answers.next())
        await asyncio.sleep(0)
        for text in "ab":
            listener.token_sink(0)(5, text)
            listener.hear(TextDelta(0, text))
            listener.flush()
            await asyncio.sleep(0)
            called.append(waker._all_scheduled or waker._urgent_scheduled)
        listener.hear(TextDelta(0, finish=FinishReason.STOP))
        listener.flush()
        (news,) = await waiting
        answers.close()
        return called, news.delta.text

    assert asyncio.run(listen()) == ([False, False], "aabb")


def test_who_waits_for_news_hears_that_the_client_went_away() -> None:
    async def leave() -> Message:
        return {"type": "http.disconnect"}

    async def listen() -> None:
        ((stream, _),) = opened(StreamWaker(), 1, leave)
        try:
            with pytest.raises(ClientGone):
                await asyncio.wait_for(stream.next(), 5)
        finally:
            stream.close()

    asyncio.run(listen())
