"""What crosses between processes comes out as it went in."""

import pickle
import random
from collections import Counter
from collections.abc import Iterator
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
from server.scheduler.request import (
    CallbackListener,
    Generation,
    TextDelta,
    TokenPiece,
    TokenSink,
)


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


class Recorder:
    """Makes a delta of each plain token, and counts those and the flushes."""

    def __init__(self) -> None:
        self.heard: list[TextDelta] = []
        self.plain: Counter[int] = Counter()
        self.flushes = 0

    def hear(self, update: TextDelta) -> None:
        self.heard.append(update)

    def token_sink(self, index: int) -> TokenSink:
        def take(token_id: int, text: str) -> None:
            self.plain[index] += 1
            self.heard.append(TextDelta(index, text, (TokenPiece(token_id, text),)))

        return take

    def flush(self) -> None:
        self.flushes += 1


@pytest.fixture
def connection() -> Iterator[EngineConnection]:
    ours, _theirs = Pipe()
    connection = EngineConnection(ours, EngineFacts("base", "f", "cpu", "float32", 100, 100, 1))
    yield connection
    connection.fail(Unavailable("the test is over"))


@pytest.mark.parametrize("seed", range(20))
def test_listeners_hear_every_delta_in_the_order_of_each_answer(
    connection: EngineConnection, seed: int
) -> None:
    draw = random.Random(seed)
    recorder, deltas = Recorder(), list[TextDelta]()
    for listener in (recorder, CallbackListener(deltas.append)):
        connection.submit(Generation("r", "o", (1,), SamplingParams(), n=3), listener)
    sent = [(key, some_delta(draw, key % 3)) for key in draw.choices(range(6), k=40)]
    updates = AnswerUpdates()
    for key, delta in sent:
        updates.add(key, delta)
    connection.receive(pickle.loads(pickle.dumps(updates)))
    for key in range(6):
        heard = recorder.heard if key < 3 else deltas
        assert [delta for delta in heard if delta.index == key % 3] == [
            delta for k, delta in sent if k == key
        ]
    assert recorder.flushes == 1, "once for all answers of a message"
    for key in range(3):
        plain = updates.keys.count(key)
        assert recorder.plain[key] == max(plain - 1, 0), "the first token is heard, others taken"


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
