"""Logprobs are those of the plain model's raw distribution, sorted, and the same among equals."""

import random

import pytest
import torch

from server.bases.model import BaseModel
from server.engine.logprobs import best_tokens, logprob_tensors, token_logprobs
from server.engine.sequence import Chunk, TokenLogprob
from tests.engine.driving import make_engine, make_sequence, random_prompt
from tests.models import KINDS, VOCAB, Kind, tiny_model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 6, 100])
def test_prompt_and_answer_logprobs_equal_the_plain_model(kind: Kind, chunk: int) -> None:
    model = tiny_model(kind)
    prompt = random_prompt(random.Random(2), 37, VOCAB)
    plain = tiny_model(kind)
    sequence = make_sequence(
        0,
        prompt,
        max_tokens=9,
        temperature=0.9,
        presence_penalty=1.5,
        top_logprobs=4,
        prompt_logprobs=True,
    )
    engine = make_engine(model, block_tokens=8)
    engine.finish(sequence, chunk)
    outputs = engine.outputs[0]
    scores = [it for output in outputs for it in output.prompt_logprobs]
    scores += [output.logprob for output in outputs if output.logprob is not None]
    tokens = [*prompt, *sequence.output]
    with torch.inference_mode():
        expected = plain(torch.tensor([tokens])).logits[0].log_softmax(-1)[:-1]
    assert [it.token_id for it in scores] == tokens[1:]
    _check(scores, expected)


def _check(scores: list[TokenLogprob], expected: torch.Tensor) -> None:
    for it, row in zip(scores, expected, strict=True):
        assert it.logprob == pytest.approx(float(row[it.token_id]), abs=2e-4)
        assert len(it.top) == 4
        assert [value for _, value in it.top] == pytest.approx(
            row.topk(4).values.tolist(), abs=2e-4
        )
        assert [value for _, value in it.top] == sorted((v for _, v in it.top), reverse=True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_without_a_token_are_never_generated_nor_among_the_best(temperature: float) -> None:
    """Others keep the logprobs of the raw distribution, and a prompt may hold such an id."""
    named = range(2, VOCAB, 7)
    nameless = sorted(set(range(VOCAB)) - set(named))
    prompt = random_prompt(random.Random(3), 12, VOCAB)
    sequence = make_sequence(
        0, prompt, max_tokens=20, temperature=temperature, top_logprobs=5, prompt_logprobs=True
    )
    engine = make_engine(tiny_model("llama"), nameless=nameless)
    engine.finish(sequence)
    assert set(sequence.output) <= set(named)
    scores = [it for output in engine.outputs[0] for it in output.prompt_logprobs]
    scores += [output.logprob for output in engine.outputs[0] if output.logprob is not None]
    tokens = [*prompt, *sequence.output]
    with torch.inference_mode():
        raw = tiny_model("llama")(torch.tensor([tokens])).logits[0].log_softmax(-1)[:-1]
    for it, row in zip(scores, raw, strict=True):
        assert it.logprob == pytest.approx(float(row[it.token_id]), abs=2e-4)
        best = sorted(named, key=lambda token: -float(row[token]))[:5]
        assert [token for token, _ in it.top] == best
        assert [value for _, value in it.top] == pytest.approx(row[best].tolist(), abs=2e-4)
    if temperature == 0:
        greedy = [next(iter(it.top))[0] for it in scores[len(prompt) - 1 :]]
        assert sequence.output == greedy


def test_an_end_token_that_the_tokenizer_lacks_can_still_end_an_answer() -> None:
    base = BaseModel.of(tiny_model("llama"), "tiny")
    assert base.nameless is None
    (end,) = base.eos_token_ids
    kept = base.without(range(VOCAB - 10, VOCAB + 0)).without([end, 7, 7, 5]).nameless
    assert kept is not None and kept.tolist() == [5, 7]
    assert base.without([end]).nameless is None


def test_no_logprobs_unless_asked_and_only_the_tokens_own_at_zero() -> None:
    engine = make_engine(tiny_model("llama"))
    engine.finish(make_sequence(0, [3, 4, 5], max_tokens=2))
    engine.finish(make_sequence(1, [3, 4, 5], max_tokens=2, top_logprobs=0))
    assert [output.logprob for output in engine.outputs[0]] == [None, None]
    assert all(output.logprob and output.logprob.top == () for output in engine.outputs[1])
    assert not any(output.prompt_logprobs for output in engine.outputs[0] + engine.outputs[1])


def test_preemption_hands_out_no_score_twice() -> None:
    engine = make_engine(tiny_model("llama"))
    prompt = random_prompt(random.Random(4), 30, VOCAB)
    sequence = make_sequence(0, prompt, prompt_logprobs=True, max_tokens=4)
    for lengths in ((10,), (7, 9), (30,), (31,)):
        for length in lengths:
            engine.step([Chunk(sequence, length)])
        engine.pool.free(sequence)
    engine.finish(sequence)
    scored = [it.token_id for output in engine.outputs[0] for it in output.prompt_logprobs]
    assert scored == prompt[1:]


@pytest.mark.parametrize("count", [1, 3, 7, 50])
def test_best_tokens_among_many_equals(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    logprobs = torch.randint(-3, 2, (20, 40), generator=generator).float() / 2
    logprobs[3] = -torch.inf
    ids, values = best_tokens(logprobs, count)
    for row, got_ids, got in zip(logprobs.tolist(), ids.tolist(), values.tolist(), strict=True):
        ranked = sorted(range(40), key=lambda token: (-row[token], token))[:count]
        assert got_ids == ranked
        assert got == [row[token] for token in ranked]


def test_scoring_many_rows_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(10, 30, generator=torch.Generator().manual_seed(0))

    def score(rows: int) -> list[TokenLogprob]:
        tensors = logprob_tensors(logits[:rows], torch.arange(rows), 2)
        return token_logprobs(range(rows), [2] * rows, tensors)

    whole = score(10)
    monkeypatch.setattr("server.engine.logprobs._MAX_SCORED", 70)
    assert len(whole) == 10 and score(10) == whole
    assert score(0) == []
