"""What crosses between processes comes out as it went in."""

import pickle
import random
from collections.abc import Callable, Iterator
from multiprocessing import Pipe

import pytest

from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound
from server.engine.sequence import FinishReason, SamplingParams, TokenLogprob
from server.errors import (
    ContextLengthExceeded,
    InvalidDataset,
    InvalidRequest,
    LineProblem,
    QueueFull,
    TrainingFailed,
    Unavailable,
)
from server.replicas.connection import EngineConnection
from server.replicas.messages import AnswerUpdates, EngineFacts
from server.scheduler.request import Generation, TextDelta, TokenPiece


def some_delta(draw: random.Random, index: int) -> TextDelta:
    score = TokenLogprob(5, -1.5, ((5, -1.5), (7, -2.0)))
    plain = TextDelta(index, "é", (TokenPiece(5, "é"),))
    others = [
        TextDelta(index, "", (TokenPiece(5, "held back"),)),
        TextDelta(index, "ab", (TokenPiece(5, "ab", score),), prompt_logprobs=(None, score)),
        TextDelta(index, "ab", (TokenPiece(5, "a"), TokenPiece(6, "b"))),
        TextDelta(index, "!", (TokenPiece(5, "!"),), finish=FinishReason.STOP, stop_reason="!"),
        TextDelta(index, finish=FinishReason.ERROR, error=None),
    ]
    return plain if draw.random() < 0.7 else draw.choice(others)


class Mixed:
    """Hears plain tokens by themselves, and makes of them what other listeners are told."""

    def __init__(self) -> None:
        self.heard: list[TextDelta] = []
        self.times_told = 0

    def __call__(self, delta: TextDelta) -> None:
        self.heard.append(delta)

    def text_taker(self, index: int) -> Callable[[str], None]:
        return lambda text: self(TextDelta(index, text, (TokenPiece(5, text),)))

    def told(self) -> None:
        self.times_told += 1


@pytest.fixture
def link() -> Iterator[EngineConnection]:
    ours, _theirs = Pipe()
    link = EngineConnection(ours, EngineFacts("base", "f", "cpu", "float32", 100, 100, 1))
    yield link
    link.fail(Unavailable("the test is over"))


@pytest.mark.parametrize("seed", range(20))
def test_listeners_hear_every_delta_in_the_order_of_each_answer(
    link: EngineConnection, seed: int
) -> None:
    draw = random.Random(seed)
    mixed, plain = Mixed(), Mixed()
    for listener in (mixed, plain.heard.append):
        link.submit(Generation("r", "o", (1,), SamplingParams(), n=3), listener)
    sent = [(key, some_delta(draw, key % 3)) for key in draw.choices(range(6), k=40)]
    news = AnswerUpdates()
    for key, delta in sent:
        news.add(key, delta)
    link.take(pickle.loads(pickle.dumps(news)))
    for key in range(6):
        heard = (mixed if key < 3 else plain).heard
        told = [delta for delta in heard if delta.index == key % 3]
        assert told == [delta for k, delta in sent if k == key]
    assert mixed.times_told == any(key < 3 for key in news.keys), "once for all answers"


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("off", param="n"),
        ContextLengthExceeded("too long", param="messages"),
        InvalidDataset("lines", [LineProblem(3, "empty")], param="validation_file"),
        QueueFull("wait", retry_after_s=2.5),
        TrainingFailed("no", code="diverged"),
        Unavailable("gone"),
        AdapterNotFound("nobody@1"),
        AdapterCorrupt("torn"),
    ],
)
def test_errors_keep_their_type_words_and_fields(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
