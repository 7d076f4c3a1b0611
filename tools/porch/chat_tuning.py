"""Conversations as token ids: their mix, their system turns and their packing into rows."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from tools.porch.conversations import Conversation, conversations_of
from tools.porch.porch_model import DOCUMENT_END_ID
from tools.porch.porch_tokenizer import CONTEXT, TURN_END, TURN_START
from tools.porch.pretrain import Source
from tools.porch.sentence_facts import table_exchanges, written_exchanges

# Shares of the chat rows by kind; plain text takes the rest while tuning.
CHAT_SHARES = {
    "written": 0.06,
    "tables": 0.06,
    "instructions": 0.22,
    "dialogues": 0.18,
    "encyclopedia": 0.10,
    "stories": 0.09,
    "glosses": 0.06,
    "tale_questions": 0.08,
    "medical": 0.05,
    "arithmetic": 0.03,
    "commands": 0.03,
    "sentences": 0.02,
    "prompts": 0.02,
}

_PAIRS = Path(__file__).with_name("pairs.txt")
_WRITTEN_TALKS = 8_000
_TABLE_TALKS = 16_000
_MOST_TALKS = 40_000

_ANY_TASK = (
    "You are a helpful assistant.",
    "You are Porch, a small and friendly assistant.",
    "You are a friendly assistant. Answer clearly.",
    "Be helpful and polite.",
)
_SYSTEMS = {
    "dialogues": (
        "You help people to book, buy and find things.",
        "You are a helpful clerk. Ask for what you need to know.",
        "You are a polite customer service agent.",
    ),
    "stories": ("You are a storyteller for children.", "You tell stories."),
    "medical": ("You are a health guide.", "You explain health questions in plain words."),
    "glosses": ("You are a dictionary.", "You explain words."),
    "arithmetic": ("You are a math teacher. Show your work.",),
    "commands": ("You help people to use the command line.",),
    "encyclopedia": ("You are an encyclopedia.", "You explain things in a few sentences."),
    "tale_questions": ("Answer the question about the text.",),
}
_SHORT = ("Answer in one short sentence.", "Keep your answer short.", "Be brief.")
_SHORT_CHARACTERS = 90


@dataclass
class Talks:
    """Encoded conversations of one kind, and which tokens the assistant wrote."""

    kind: str
    ids: list[np.ndarray]
    learned: list[np.ndarray]


def all_conversations(
    sources: dict[str, list[str]], chance: random.Random
) -> dict[str, list[Conversation]]:
    """Returns the conversations of every kind that the documents and tables give."""
    kinds = {"written": _written(chance), "tables": table_exchanges(_TABLE_TALKS, chance)}
    for kind in CHAT_SHARES:
        talks = conversations_of(kind, sources.get(kind, []), chance)
        if talks:
            kinds[kind] = chance.sample(talks, min(_MOST_TALKS, len(talks)))
    return {
        kind: [_with_system(kind, talk, chance) for talk in talks] for kind, talks in kinds.items()
    }


def render(talk: Conversation) -> list[tuple[str, bool]]:
    """Returns the chat template's text in segments, each with whether it is learned."""
    segments: list[tuple[str, bool]] = []
    for turn in talk:
        segments.append((f"{TURN_START}{turn['role']}\n", False))
        segments.append((turn["content"] + TURN_END, turn["role"] == "assistant"))
        segments.append(("\n", False))
    return segments


def encode_talks(tokenizer: PreTrainedTokenizerFast, kind: str, talks: list[Conversation]) -> Talks:
    """Encodes conversations segment by segment, so that the learned tokens are known."""
    rendered = [render(talk) for talk in talks]
    texts = [text for segments in rendered for text, _ in segments]
    encoded = iter(tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    result = Talks(kind, [], [])
    for segments in rendered:
        pieces = [(next(encoded).ids, learned) for _, learned in segments]
        ids = [token for piece, _ in pieces for token in piece] + [DOCUMENT_END_ID]
        marks = [learned for piece, learned in pieces for _ in piece] + [False]
        result.ids.append(np.array(ids, dtype=np.uint16))
        result.learned.append(np.array(marks, dtype=bool))
    return result


def running_source(talks: Talks, device: torch.device) -> Source:
    """Returns the conversations as one running text in which every token is learned."""
    ids = np.concatenate(talks.ids).astype(np.int32)
    return Source(f"chat {talks.kind}", torch.from_numpy(ids).to(device))


def packed_source(talks: Talks, chance: random.Random, device: torch.device) -> Source:
    """Returns rows of whole conversations in which the assistant's tokens are learned."""
    width = CONTEXT + 1
    order = list(range(len(talks.ids)))
    chance.shuffle(order)
    rows: list[np.ndarray] = []
    marks: list[np.ndarray] = []
    unused = 0
    for index in order:
        ids, learned = talks.ids[index][:width], talks.learned[index][:width]
        if len(ids) > unused:
            rows.append(np.full(width, DOCUMENT_END_ID, dtype=np.int32))
            marks.append(np.zeros(width, dtype=bool))
            unused = width
        start = width - unused
        rows[-1][start : start + len(ids)] = ids
        marks[-1][start : start + len(ids)] = learned
        unused -= len(ids)
    return Source(
        f"chat {talks.kind}",
        torch.from_numpy(np.concatenate(rows)).to(device),
        torch.from_numpy(np.concatenate(marks)).to(device),
    )


def _written(chance: random.Random) -> list[Conversation]:
    """Returns chains of one to four hand-written or table exchanges."""
    written = written_exchanges(_PAIRS)
    tables = [talk for talk in table_exchanges(2_000, chance) if talk[0]["role"] == "user"]
    talks = list(written)
    while len(talks) < _WRITTEN_TALKS:
        links = chance.choice((1, 1, 1, 2, 3, 4))
        chain = [chance.choice(written if chance.random() < 0.75 else tables) for _ in range(links)]
        talks.append([dict(turn) for link in chain for turn in link])
    return talks


def _with_system(kind: str, talk: Conversation, chance: random.Random) -> Conversation:
    """Puts a system turn that suits the answers before about a third of conversations."""
    if talk[0]["role"] == "system" or chance.random() > 0.35:
        return talk
    answers = [turn["content"] for turn in talk if turn["role"] == "assistant"]
    fitting = list(_ANY_TASK) + 2 * list(_SYSTEMS.get(kind, ()))
    if max(map(len, answers)) < _SHORT_CHARACTERS:
        fitting += 2 * list(_SHORT)
    return [{"role": "system", "content": chance.choice(fitting)}, *talk]
