"""Twenty users: what each uploads, and lines of the same kind that no job sees."""

import csv
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.claims.data import e2e_texts
from benchmarks.claims.data.task_texts import snips
from benchmarks.claims.personal.styles import Pair, styles

_FRESH: Final = 40
"""Held-out lines of a user, at most."""

_SIZES: Final = {
    "intents": (30, 60, 120, 300),
    "fairy tales": (30, 60, 150, 300),
    "descriptions": (30, 60, 150, 300),
}
_STYLE_LINES: Final = 30
_LONGEST: Final = 1200  # characters of a tale's section
_SEED: Final = 11


@dataclass(frozen=True)
class User:
    """Questions and answers. `exact`: an answer is right if it is the given one to the letter."""

    name: str
    kind: str
    exact: bool
    lines: Sequence[Pair]
    fresh: Sequence[Pair]

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        pairs = {part: [(q, a) for q, a in record[part]] for part in ("lines", "fresh")}
        return cls(**record | pairs)


def chat(pairs: Iterable[Pair], *, weight: int = 1) -> list[dict[str, object]]:
    """As messages; `weight` 0: the answers are shown and not learnt."""
    messages: list[dict[str, object]] = []
    for question, answer in pairs:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer, "weight": weight})
    return messages


def users(folder: Path, examples: Path) -> Iterator[User]:
    """Styles from this repository, and the other kinds from the folder."""
    for name, pairs in styles(examples).items():
        fresh = pairs[_STYLE_LINES : _STYLE_LINES + _FRESH]
        yield User(name, "styles", False, pairs[:_STYLE_LINES], fresh)
    kinds = {
        "intents": snips(folder, "train_*_full.json"),
        "fairy tales": list(_tales(folder / "fairytaleqa")),
        "descriptions": e2e_texts.pairs(folder / "e2e" / "train.txt"),
    }
    for kind, sizes in _SIZES.items():
        pairs = [(question.strip(), answer) for question, answer in kinds[kind]]
        random.Random(_SEED).shuffle(pairs)
        for lines in sizes:
            own, pairs = pairs[: lines + _FRESH], pairs[lines + _FRESH :]
            exact = kind != "descriptions"
            yield User(f"{kind} {lines}", kind, exact, own[:lines], own[lines:])


def _tales(folder: Path) -> Iterator[Pair]:
    """A section of a tale and a question, answered in few words by a storyteller."""
    for file in sorted((folder / "questions" / "train").glob("*-questions.csv")):
        story = folder / "stories" / "train" / file.name.replace("-questions", "-story")
        if not story.exists():
            continue
        sections = {row["section"]: row["text"] for row in _rows(story)}
        for row in _rows(file):
            text = sections.get(row["cor_section"], "")
            if row["answer1"] and row["ex-or-im1"] == "explicit" and 0 < len(text) <= _LONGEST:
                answer = row["answer1"].strip().rstrip(".")
                yield f"{text}\n\n{row['question'].strip()}", f"The tale says: {answer}."


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        return list(csv.DictReader(lines))


def save(found: Iterable[User], file: Path) -> None:
    lines = (json.dumps(asdict(user), ensure_ascii=False) for user in found)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def load(file: Path) -> list[User]:
    return [User.of(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
