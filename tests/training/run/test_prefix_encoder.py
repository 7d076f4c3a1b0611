"""Texts that begin alike have the tokens that each has when it is read alone."""

import random
import time

import pytest
from tokenizers import AddedToken

from server.bases.tokenizer import ChatTokenizer
from server.training.run.prefix_encoder import PrefixEncoder
from tests.training.families import Family, byte_fallback, byte_level

FAMILY = Family("", "</s>", ("<|user|>", "<|bot|>"))
PARTS = ("<|user|>", "<|bot|>", "<s>", "</s>", "<cut>", "<wide>", "Hello", " He", "\n", " ", "👋")


def made(kind: str) -> ChatTokenizer:
    tokenizer = {"byte-level": byte_level, "byte-fallback": byte_fallback}[kind](FAMILY)
    tokenizer._tokenizer.add_tokens(["<cut>", AddedToken("<wide>", lstrip=True, rstrip=True)])
    return ChatTokenizer(tokenizer._tokenizer, name="small")


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_each_text_has_its_own_tokens(kind: str) -> None:
    tokenizer, draw = made(kind), random.Random(4)
    for _ in range(60):
        longest = "".join(draw.choice(PARTS) for _ in range(draw.randrange(1, 30)))
        encoder = PrefixEncoder(tokenizer)
        texts = [longest, *(longest[: draw.randrange(len(longest) + 1)] for _ in range(8))]
        texts += [text + draw.choice(PARTS) for text in texts[1:]]
        for text in texts:
            assert encoder.encode(text) == tokenizer.encode(text), text


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_the_prompts_of_a_long_chat_cost_what_the_chat_costs(kind: str) -> None:
    tokenizer = made(kind)
    turn = "<|user|>How are you?<|bot|>" + "Well. " * 30
    whole = turn * 60

    def seconds(count: int) -> float:
        encoder, began = PrefixEncoder(tokenizer), time.thread_time()
        encoder.encode(whole)
        for number in range(count):
            encoder.encode(turn * (number + 1))
        return time.thread_time() - began

    seconds(0)
    assert min(seconds(60) for _ in range(2)) < 10 * min(seconds(0) for _ in range(3))
