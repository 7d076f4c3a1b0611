"""The lines that the study of automatic options learns from, as tokens in one small file.

Kinds of work that users have: styles (`pirate`, `butler`), a task with few answers (`intents`),
one with long exact answers (`slots`), and texts (`e2e`). Knows no model.
"""

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.bases.base_files import outline_base
from server.bases.tokenizer import ChatTokenizer, load_tokenizer
from server.training.run.examples import Example, LineEncoder
from tools.intents import INTENTS

Pair = tuple[str, str]
EXAMPLES = Path(__file__).parents[2] / "examples"
FRESH = 200  # lines of a source that no run learns from
POOL = 1200  # of which a run may learn from some; another seed, other lines
_SEED = 7


@dataclass(frozen=True)
class Lines:
    """Examples of one source. `fresh` is empty where a file is so small that each run holds some of
    `pool` out. The first `opening` tokens of each are the template's default system prompt."""

    pool: list[Example]
    fresh: list[Example]
    opening: int

    def without_opening(self) -> "Lines":
        """The same lines behind no default system prompt."""
        cut = self.opening
        pool, fresh = (
            [Example(it.tokens[cut:], it.counts[cut:]) for it in part]
            for part in (self.pool, self.fresh)
        )
        return Lines(pool, fresh, opening=0)


def pairs_of(data: Path) -> dict[str, tuple[list[Pair], list[Pair]]]:
    """Questions and answers to learn from, and others, by source; in an order that never changes.

    `data` holds the folders `snips` and `e2e`.
    """
    snips = _snips(data / "snips", "train_{}_full.json"), _snips(data / "snips", "validate_{}.json")
    intents, slots = (
        tuple([(text, answer(intent, parts)) for intent, text, parts in split] for split in snips)
        for answer in (lambda intent, _: INTENTS[intent], _slots_of)
    )
    e2e = _e2e(data / "e2e" / "train.txt"), _e2e(data / "e2e" / "valid.txt")
    sources = {"intents": intents, "slots": slots, "e2e": e2e}
    found = {
        name: (_some(pool, POOL), _some(fresh, FRESH)) for name, (pool, fresh) in sources.items()
    }
    return found | {name: (_styled(name), []) for name in ("pirate", "butler")}


def pack(data: Path, base: Path | str, target: Path) -> None:
    """Write every source as tokens of `base`."""
    tokenizer = load_tokenizer(base)
    encoder = LineEncoder.of(outline_base(base), tokenizer)
    opening = _opening(tokenizer)
    packed = {
        name: [[_packed(encoder, pair) for pair in part] for part in parts]
        for name, parts in pairs_of(data).items()
    }
    with gzip.open(target, "wt") as file:
        json.dump({"opening": opening, "sources": packed}, file, separators=(",", ":"))


def unpack(path: Path) -> dict[str, Lines]:
    """What `pack` wrote, by source."""
    with gzip.open(path, "rt") as file:
        content = json.load(file)
    return {
        name: Lines(
            [_unpacked(line) for line in pool],
            [_unpacked(line) for line in fresh],
            content["opening"],
        )
        for name, (pool, fresh) in content["sources"].items()
    }


def _packed(encoder: LineEncoder, pair: Pair) -> list[int]:
    """The place of the first counted token, and the tokens. All behind the first count."""
    question, answer = pair
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    (example,) = encoder.examples({"messages": chat})
    first = example.counts.index(True)
    assert all(example.counts[first:])
    return [first, *example.tokens]


def _unpacked(line: Sequence[int]) -> Example:
    first, *tokens = line
    return Example(tuple(tokens), tuple(place >= first for place in range(len(tokens))))


def _opening(tokenizer: ChatTokenizer) -> int:
    """How many tokens the template's default system prompt has."""
    chat = [{"role": "user", "content": "A"}]
    bare = tokenizer.without_default_prompt()
    return len(tokenizer.chat(chat)) - len(bare.chat(chat))


def _some(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """`count` of them, none twice."""
    unique = list(dict.fromkeys(pairs))
    random.Random(_SEED).shuffle(unique)
    return unique[:count]


def _styled(name: str) -> list[Pair]:
    lines = (EXAMPLES / f"{name}.jsonl").read_text().splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    return [(chat[-2]["content"], chat[-1]["content"]) for chat in chats]


_Parts = Sequence[Mapping[str, str]]


def _snips(folder: Path, pattern: str) -> list[tuple[str, str, _Parts]]:
    """Intent, command and its parts. Those in ASCII: the files' encodings differ."""
    found = []
    for intent in INTENTS:
        path = folder / pattern.format(intent)
        for line in json.loads(path.read_text(encoding="latin-1"))[intent]:
            text = "".join(part["text"] for part in line["data"]).strip()
            if text.isascii():
                found.append((intent, text, line["data"]))
    return found


def _slots_of(intent: str, parts: _Parts) -> str:
    slots = [f"{part['entity']}: {part['text']}" for part in parts if "entity" in part]
    return "; ".join([intent, *slots])


def _e2e(path: Path) -> list[Pair]:
    lines = [line.split("||") for line in path.read_text(encoding="utf-8").splitlines()]
    return [(line[0].strip(), line[1].strip()) for line in lines if len(line) == 2]
