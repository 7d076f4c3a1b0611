"""What crosses between processes comes out as it went in."""

import pickle
import random

import pytest

from adapters_store.errors import AdapterCorrupt, AdapterNotFound
from server.engine.sequence import FinishReason, TokenLogprob
from server.errors import (
    ContextLengthExceeded,
    InvalidDataset,
    InvalidRequest,
    LineProblem,
    QueueFull,
    TrainingFailed,
    Unavailable,
)
from server.replicas.messages import News
from server.scheduler.request import Delta, TokenPiece


def some_delta(draw: random.Random, index: int) -> Delta:
    score = TokenLogprob(5, -1.5, ((5, -1.5), (7, -2.0)))
    plain = Delta(index, "é", (TokenPiece(5, "é"),))
    others = [
        Delta(index, "", (TokenPiece(5, "held back"),)),
        Delta(index, "ab", (TokenPiece(5, "ab", score),), prompt_logprobs=(None, score)),
        Delta(index, "ab", (TokenPiece(5, "a"), TokenPiece(6, "b"))),
        Delta(index, "!", (TokenPiece(5, "!"),), finish=FinishReason.STOP, stop_reason="!"),
        Delta(index, finish=FinishReason.ERROR, error=None),
    ]
    return plain if draw.random() < 0.7 else draw.choice(others)


@pytest.mark.parametrize("seed", range(20))
def test_news_keep_every_delta_and_the_order_of_each_answer(seed: int) -> None:
    draw = random.Random(seed)
    indices = {key: key % 3 for key in range(5)}
    sent = [(key, some_delta(draw, indices[key])) for key in draw.choices(range(5), k=40)]
    packed = News()
    for key, delta in sent:
        packed.add(key, delta)
    news = pickle.loads(pickle.dumps(packed))
    heard = list(news.deltas(indices))
    assert len(heard) == len(sent)
    for key in indices:
        assert [d for k, d in heard if k == key] == [d for k, d in sent if k == key]


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
