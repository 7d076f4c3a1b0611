"""Measures a saved model folder: bits per byte on held-out text, and unpicked samples."""

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.porch.conversations import Conversation
from tools.porch.porch_model import DOCUMENT_END_ID, IGNORED, TURN_END_ID
from tools.porch.porch_tokenizer import CONTEXT

# The library types neither what its factories load nor what they generate.
Model = Any
Tokenizer = Any

STRIDE = CONTEXT // 2
TEMPERATURE, TOP_P = 0.8, 0.95
_PREFIX_TOKENS, _NEW_TOKENS = 40, 120
_PROSE = (
    "stories, simple_books, books, encyclopedia, textbooks, guides, medical, glosses,"
    "dialogues, tale_questions"
)

# Written before training; the user turns of one list follow each other.
QUESTIONS: tuple[tuple[str | None, tuple[str, ...]], ...] = (
    (None, ("Hello! Who are you?",)),
    (None, ("What should I cook tonight?",)),
    (None, ("Tell me a story about a fox and a little girl.",)),
    (None, ("Why do children need sleep?",)),
    (None, ("What is the capital of France?",)),
    (None, ("How do I clean a wooden table?",)),
    (None, ('What does the word "brave" mean?',)),
    ("You are Nora, a hotel clerk.", ("Hello, who are you?", "I need a room for two nights.")),
    (None, ("What is a volcano?",)),
    (None, ("My name is Tim.", "What is my name?")),
)


@dataclass(frozen=True)
class Score:
    """Bits per byte of raw UTF-8 text, and how much text that was measured on."""

    bits_per_byte: float
    bytes: int
    tokens: int


def load(folder: Path, device: torch.device) -> tuple[Model, Tokenizer]:
    """Loads the saved folder the way any user would."""
    model: Model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def score(model: Model, tokenizer: Tokenizer, documents: list[str], rows: int) -> Score:
    """Scores documents in windows of `CONTEXT` tokens that move on by half a window.

    Every token of a document counts once, with at least half a window before it unless it
    stands nearer to the document's start; the first token follows the document end token.
    """
    windows = [
        window
        for document in documents
        for window in _windows(tokenizer(document, verbose=False)["input_ids"])
    ]
    nats, tokens = 0.0, 0
    windows.sort(key=lambda window: len(window[0]))
    for start in range(0, len(windows), rows):
        batch = windows[start : start + rows]
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.full((len(batch), longest), DOCUMENT_END_ID)
        targets = torch.full((len(batch), longest), IGNORED)
        for row, (window, fresh) in enumerate(batch):
            ids[row, : len(window)] = torch.tensor(window)
            targets[row, len(window) - fresh : len(window)] = torch.tensor(window[-fresh:])
            tokens += fresh
        logits = model(ids.to(model.device)).logits[:, :-1].float()
        aims = targets[:, 1:].flatten().to(model.device)
        nats += float(
            functional.cross_entropy(
                logits.flatten(0, 1), aims, ignore_index=IGNORED, reduction="sum"
            )
        )
    size = sum(len(document.encode()) for document in documents)
    return Score(nats / math.log(2) / max(1, size), size, tokens)


@torch.no_grad()
def answer_loss(model: Model, tokenizer: Tokenizer, talks: list[Conversation]) -> float:
    """Returns the mean nats a token of the assistant's turns, their end tokens included."""
    nats, tokens = 0.0, 0
    for talk in talks:
        encoded = tokenizer.apply_chat_template(
            talk, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        ids = encoded["input_ids"].to(model.device)
        learned = torch.as_tensor(encoded["assistant_masks"]).flatten()[1:].to(model.device)
        aims = ids[0, 1:].masked_fill(learned == 0, IGNORED)
        logits = model(ids).logits[0, :-1].float()
        nats += float(functional.cross_entropy(logits, aims, ignore_index=IGNORED, reduction="sum"))
        tokens += int(learned.sum())
    return nats / max(1, tokens)


def answers(
    model: Model, tokenizer: Tokenizer, talks: list[Conversation], seed: int
) -> list[dict[str, str | bool]]:
    """Returns each talk's question with the model's answer, and whether the answer ends."""
    drawn: list[dict[str, str | bool]] = []
    for index, talk in enumerate(talks):
        ids = tokenizer.apply_chat_template(
            talk[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        answer = _generate(model, ids, seed + index)
        text = tokenizer.decode(answer, skip_special_tokens=True).strip()
        ended = TURN_END_ID in answer
        drawn.append({"question": talk[-2]["content"], "answer": text, "ended": ended})
    return drawn


def total(scores: list[Score]) -> Score:
    """Returns the score of several texts taken together."""
    size = sum(part.bytes for part in scores)
    bits = sum(part.bits_per_byte * part.bytes for part in scores)
    return Score(bits / max(1, size), size, sum(part.tokens for part in scores))


def continuations(
    model: Model, tokenizer: Tokenizer, sources: dict[str, list[str]], seed: int
) -> list[tuple[str, str, str]]:
    """Returns (source, prefix, continuation) for one held-out document of each kind."""
    chance = random.Random(seed)
    samples: list[tuple[str, str, str]] = []
    for source in map(str.strip, _PROSE.split(",")):
        if source not in sources:
            continue
        document = chance.choice(sources[source])
        if len(document) > 20_000:
            document = document[document.find("\n", len(document) // 2) + 1 :]
        ids = tokenizer(document[:2000])["input_ids"][:_PREFIX_TOKENS]
        ids = ids[: max(8, len(ids) - 8)]
        answer = _generate(model, torch.tensor([ids]), seed + len(samples))
        samples.append((source, tokenizer.decode(ids), tokenizer.decode(answer)))
    return samples


def chats(model: Model, tokenizer: Tokenizer, seed: int) -> list[Conversation]:
    """Returns the fixed questions with the model's answers, as conversations."""
    talks = []
    for index, (system, questions) in enumerate(QUESTIONS):
        talk: Conversation = [{"role": "system", "content": system}] if system else []
        for question in questions:
            talk.append({"role": "user", "content": question})
            ids = tokenizer.apply_chat_template(
                talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
            answer = _generate(model, ids, seed + index)
            text = tokenizer.decode(answer, skip_special_tokens=True)
            talk.append({"role": "assistant", "content": text.strip()})
        talks.append(talk)
    return talks


def _windows(ids: list[int]) -> list[tuple[list[int], int]]:
    """Returns windows of ids, each with how many of its last ids it is the first to hold."""
    ids = [DOCUMENT_END_ID, *ids]
    windows = []
    done = 1
    while done < len(ids):
        end = min(len(ids), CONTEXT if done == 1 else done + STRIDE)
        windows.append((ids[max(0, end - CONTEXT) : end], end - done))
        done = end
    return windows


def _generate(model: Model, ids: torch.Tensor, seed: int) -> list[int]:
    torch.manual_seed(seed)
    ids = ids.to(model.device)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=_NEW_TOKENS,
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
    )
    answer: list[int] = output[0, ids.shape[1] :].tolist()
    return answer
