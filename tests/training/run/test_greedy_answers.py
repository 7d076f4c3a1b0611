"""Greedy answers in one batch are those that each would give alone, without a cache."""

import random
from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch

from server.adapters.learning.trainable import TrainableAdapter
from server.bases.model import BaseModel
from server.training.job.samples import MAX_NEW, Question, questions_of, sample_of
from server.training.run.examples import build_examples
from server.training.run.greedy_answers import GreedyRequest, answer, answer_all
from tests.models import EOS, KINDS, Kind, tiny_base
from tests.training.chats import MARKED, UNMARKED, byte_tokenizer, encoder
from tests.writing import WRITING

ENDS = frozenset({EOS})


def adapter_of(base: BaseModel, method: str, seed: int) -> TrainableAdapter:
    """One that has something to say."""
    adapter = TrainableAdapter(base, method, 4, 0, "all-linear", {})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapter


def alone(base: BaseModel, asked: GreedyRequest, max_new: int) -> list[int]:
    tokens = list(asked.prompt)
    with torch.no_grad(), asked.adapter.active() if asked.adapter else nullcontext():
        for _ in range(max_new):
            tokens.append(int(base.model(torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] in asked.ends:
                break
    return tokens[len(asked.prompt) :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_tokens", [4096, 60, 1])
def test_a_batch_says_what_each_would_say_alone(kind: Kind, max_tokens: int) -> None:
    base = tiny_base(kind)
    adapters = [None, adapter_of(base, "vera", 1), adapter_of(base, "lora", 2), None]
    draw = random.Random(3)
    asked = [
        GreedyRequest([draw.randrange(3, 300) for _ in range(draw.randrange(1, 40))], adapter, ENDS)
        for adapter in [*adapters, *adapters[::-1]]
    ]
    found = answer(base, asked, max_new=12, max_tokens=max_tokens)
    assert found == [alone(base, one, 12) for one in asked]
    assert len({tuple(tokens) for tokens in found}) > 4


def test_ids_without_a_token_are_never_said() -> None:
    base = tiny_base("llama")
    asked = [GreedyRequest([5, 6, 7 + row], None, frozenset()) for row in range(6)]
    before = answer(base, asked, max_new=8, max_tokens=4096)
    banned = {token for tokens in before for token in tokens} - base.eos_token_ids
    after = answer(base.without(banned), asked, max_new=8, max_tokens=4096)
    assert banned and not banned & {token for tokens in after for token in tokens}


def test_each_row_ends_by_itself() -> None:
    base = tiny_base("llama")
    first = [[5, 6, 7], [9, 8], [100, 3, 4, 5]]
    sizes = {"max_new": 8, "max_tokens": 4096}
    whole = answer(base, [GreedyRequest(p, None, frozenset()) for p in first], **sizes)
    assert [len(tokens) for tokens in whole] == [8, 8, 8]
    # The ends are each row's own: the second row meets its fifth token, which ends it alone.
    ends = [frozenset({whole[0][2], EOS}), frozenset({whole[1][4]}), frozenset()]
    asked = [GreedyRequest(p, None, stops) for p, stops in zip(first, ends, strict=True)]
    cut = answer(base, asked, **sizes)
    assert cut[0] == whole[0][: whole[0].index(whole[0][2]) + 1]
    assert cut[1] == whole[1][: whole[1].index(whole[1][4]) + 1]
    assert cut[2] == whole[2]
    assert answer(base, [], max_new=8, max_tokens=4096) == []


def test_one_that_cannot_be_asked_leaves_the_others_their_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = tiny_base("llama")
    groups = [
        [GreedyRequest([5, 6], None, ENDS)],
        [GreedyRequest([10**6], None, ENDS)],
        [],
        [GreedyRequest([7], None, ENDS)],
    ]
    found = answer_all(base, groups, max_new=4, max_tokens=4096)
    assert found[1] is None
    assert found[2] == []
    assert found[0] == answer(base, groups[0], max_new=4, max_tokens=4096)
    assert found[3] == answer(base, groups[3], max_new=4, max_tokens=4096)
    assert "no sample answers" in caplog.text


def lines_of(records: Sequence[dict[str, object]], template: str = MARKED) -> tuple[Question, ...]:
    lines = encoder(byte_tokenizer(template), max_tokens=4096)
    examples = build_examples(enumerate(records), lines)
    return questions_of(list(zip(records, examples, strict=True)), 4096, lines.ends)


def chat(*turns: object) -> dict[str, object]:
    roles = ("user", "assistant")
    return {
        "messages": [
            turn if isinstance(turn, dict) else {"role": roles[i % 2], "content": turn}
            for i, turn in enumerate(turns)
        ]
    }


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_a_line_asks_for_its_last_answer(template: str) -> None:
    silent = {"role": "assistant", "content": "never mind", "weight": 0}
    parts = {"role": "user", "content": [{"type": "text", "text": "B"}]}
    found = lines_of([chat("A", "a", parts, "b"), chat("C", "c", "D", silent)], template)
    tokenizer = byte_tokenizer(template)
    assert [question.text for question in found] == ["B", "C"]
    told = [sample_of(question, [], [], tokenizer).expected for question in found]
    assert told == ["b", "c"]
    asked = tokenizer.chat([{"role": "user", "content": "C"}])
    assert list(found[1].prompt) == asked


def test_three_lines_are_asked_spread_over_the_file() -> None:
    found = lines_of([{"prompt": f"{number}?", "completion": "x"} for number in range(11)])
    assert [question.text for question in found] == ["0?", "5?", "10?"]
    assert lines_of([{"prompt": "y" * 2000, "completion": "x"}]) == ()


def test_long_texts_are_cut_and_say_so() -> None:
    tokenizer = byte_tokenizer()
    (question,) = lines_of([{"prompt": "q" * 700, "completion": "e" * 90}])
    short = [*tokenizer.encode("fine\x1b[31m\0"), EOS]
    sample = sample_of(question, short, tokenizer.encode("g" * MAX_NEW), tokenizer)
    assert sample.prompt == "q" * 500 + " ..."
    assert sample.expected == "e" * MAX_NEW + " ..."
    assert sample.base == "fine\u241b[31m\u2400"
    assert sample.adapter == "g" * MAX_NEW + " ..."


@pytest.mark.parametrize("text", WRITING)
def test_samples_keep_every_character(text: str) -> None:
    tokenizer = byte_tokenizer()
    (question,) = lines_of([{"prompt": f" {text}\n", "completion": "x"}])
    said = sample_of(question, [*tokenizer.encode(f"\n{text} "), EOS], [], tokenizer)
    assert (said.prompt, said.base) == (text, text)


def test_an_answer_is_not_cut_inside_a_character() -> None:
    tokenizer = byte_tokenizer()
    (question,) = lines_of([{"prompt": "q", "completion": "x"}])
    said = sample_of(question, tokenizer.encode("x" + "日" * 40)[:MAX_NEW], [], tokenizer)
    assert said.base == "x" + "日" * 15 + " ..."
