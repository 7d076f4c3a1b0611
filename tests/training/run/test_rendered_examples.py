"""Shown tokens against what a training step reads: the same ids, and the same ones learnt."""

from collections.abc import Callable, Mapping

import pytest
import torch

from server.bases.tokenizer import ChatTokenizer
from server.training.run.examples import LineEncoder
from server.training.run.loss import _tensors
from server.training.run.rendered_examples import rendered
from tests.training.chats import FORGETFUL, byte_tokenizer, encoder
from tests.training.families import FAMILIES, Family, byte_fallback, byte_level

Build = Callable[[Family], ChatTokenizer]
Record = Mapping[str, object]

USER = {"role": "user", "content": "Hi 👋"}
LINES: dict[str, Record] = {
    "one answer": {"messages": [USER, {"role": "assistant", "content": "Hello, 日本\n\nbye"}]},
    "several answers": {
        "messages": [
            USER,
            {"role": "assistant", "content": "First"},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "Second é"},
        ]
    },
    "an answer that is not learnt": {
        "messages": [
            USER,
            {"role": "assistant", "content": "Skipped", "weight": 0},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "Learnt"},
        ]
    },
    "a completion": {"prompt": "The capital", "completion": " is Paris 🗼"},
    "a completion of nothing": {"prompt": "", "completion": "Once upon a time"},
}


def lines_of(family: Family, build: Build) -> LineEncoder:
    tokenizer = build(family)
    eos = frozenset(tokenizer.encode("".join(family.base_eos))) & tokenizer.special_ids
    return encoder(tokenizer, eos=eos, vocab_size=len(tokenizer))


def check(lines: LineEncoder, record: Record) -> None:
    """Compare with the batch of the line's examples: inputs, and the places and ids of targets."""
    shown, trained = rendered(lines, record), lines.examples(record)
    assert len(shown) == len(trained) > 0
    tokens, rows, columns, targets = _tensors(trained, torch.device("cpu"))
    labels = torch.full((tokens.shape[0], tokens.shape[1] + 1), -100)
    labels[rows, columns + 1] = targets
    for row, example in enumerate(shown):
        width = len(example.tokens)
        ids = [token.id for token in example.tokens]
        learnt = [token.id if token.learnt else -100 for token in example.tokens]
        assert ids[:-1] == tokens[row, : width - 1].tolist()
        assert learnt == labels[row, :width].tolist()
        assert (labels[row, width:] == -100).all(), "nothing behind what is shown is learnt"
        assert example.learnt == (labels[row] != -100).sum() > 0


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("build", [byte_level, byte_fallback])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_shown_is_what_is_trained_on(name: str, build: Build, line: str) -> None:
    lines = lines_of(FAMILIES[name], build)
    check(lines, LINES[line])
    for example in rendered(lines, LINES[line]):
        text = "".join(token.text for token in example.tokens)
        assert text.encode() == b"".join(
            lines.tokenizer.token_bytes(token.id) for token in example.tokens
        )
        assert [token.special for token in example.tokens] == [
            token.id in lines.tokenizer.special_ids for token in example.tokens
        ]


def test_a_template_that_forgets_gives_several_examples() -> None:
    lines = encoder(byte_tokenizer(FORGETFUL))
    check(lines, LINES["several answers"])
    shown = rendered(lines, LINES["several answers"])
    learnt = ["".join(it.text for it in one.tokens if it.learnt) for one in shown]
    assert learnt == ["<think></think>First<|im_end|>", "<think></think>Second é<|im_end|>"]


def test_a_character_of_several_tokens_belongs_to_the_last() -> None:
    shown = rendered(encoder(byte_tokenizer()), {"prompt": "a", "completion": "é👋"})
    texts = [token.text for token in shown[0].tokens]
    assert texts == ["a", "", "é", "", "", "", "👋", "<|im_end|>"]
    assert shown[0].tokens[-1].special and not shown[0].tokens[0].learnt
