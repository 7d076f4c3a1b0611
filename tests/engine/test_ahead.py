"""A real model, a step in flight or not: the same answers, scores and ends."""

import random
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from server.bases.model import BaseModel
from server.engine.blocks import BlockPool
from server.engine.kv_cache import KVCache
from server.engine.runner import Runner
from server.engine.sequence import SamplingParams, TokenLogprob
from server.metrics import Metrics
from server.scheduler.loop import Limits, ServingLoop
from server.scheduler.request import CallbackListener, Generation, TextDelta
from tests.engine.driving import random_prompt
from tests.models import VOCAB, Kind, tiny_model
from tests.scheduler.fakes import FakeSlots, NumberDecoder


@dataclass
class Heard:
    """One request's answer as its listener heard it."""

    tokens: list[int] = field(default_factory=list)
    scores: list[TokenLogprob] = field(default_factory=list)
    ends: list[str | None] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def hear(self, delta: TextDelta) -> None:
        self.tokens += [piece.token_id for piece in delta.tokens]
        self.scores += [piece.logprob for piece in delta.tokens if piece.logprob is not None]
        self.scores += [it for it in delta.prompt_logprobs or () if it is not None]
        if delta.finish is not None:
            self.ends.append(delta.finish)
            self.done.set()


def requests(vocab: int) -> list[Generation]:
    """Every way to sample, beside each other; the last ones begin alike."""
    rng = random.Random(3)
    params: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.2, "top_k": 9, "min_p": 0.02},
        {"temperature": 0.0, "repetition_penalty": 1.4},
        {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": 0.7},
        {"temperature": 0.0, "logit_bias": ((7, 4.0), (8, -100.0))},
        {"temperature": 0.9, "top_logprobs": 3},
        {"temperature": 0.0, "top_logprobs": 0, "prompt_logprobs": True},
        {"temperature": 1.0, "max_tokens": 0, "prompt_logprobs": True},
        {"temperature": 1.0, "stop_token_ids": frozenset(range(0, vocab, 9))},
        {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.1},
    ]
    shared = random_prompt(rng, 24, vocab)
    return [
        Generation(
            f"r{number}",
            "owner",
            tuple((shared if number > 9 else []) + random_prompt(rng, rng.randint(2, 40), vocab)),
            SamplingParams(**{"max_tokens": rng.randint(5, 20), "seed": number, **it}),
        )
        for number, it in enumerate(params)
    ]


def answers(kind: Kind, ahead: int, blocks: int) -> tuple[list[Heard], Metrics]:
    base = BaseModel.of(tiny_model(kind), "tiny")
    kv = KVCache(base, memory_mb=4, block_tokens=8)
    runner = Runner(base, None, kv)
    assert runner.ahead == 0  # on a CPU nothing runs beside the host
    runner.ahead = ahead
    metrics = Metrics("tiny")
    loop = ServingLoop(
        runner,
        FakeSlots(),
        BlockPool(blocks, 8),
        NumberDecoder,
        eos=frozenset({2}),
        limits=Limits(max_rows=8, max_step_tokens=32, max_waiting=20, max_context=100),
        metrics=metrics,
    )
    heard = [Heard() for _ in requests(VOCAB)]
    loop.start()
    try:
        for request, listener in zip(requests(VOCAB), heard, strict=True):
            loop.submit(request, CallbackListener(listener.hear))
        for it in heard:
            assert it.done.wait(60)
    finally:
        loop.stop(0)
    return heard, metrics


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_step_in_flight_changes_no_answer(kind: Kind) -> None:
    plain, _ = answers(kind, ahead=0, blocks=200)
    ahead, metrics = answers(kind, ahead=1, blocks=24)  # so few that some lose theirs
    preempted = metrics.registry.get_sample_value(
        "verandah:num_preemptions_total", {"model_name": "tiny"}
    )
    assert preempted
    assert len({tuple(it.tokens) for it in plain}) > 9
    for one, other in zip(plain, ahead, strict=True):
        assert (one.tokens, one.ends) == (other.tokens, other.ends)
        assert [it.token_id for it in one.scores] == [it.token_id for it in other.scores]
        assert [it.logprob for it in one.scores] == pytest.approx(
            [it.logprob for it in other.scores], abs=1e-4
        )
