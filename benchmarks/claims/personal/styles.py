"""Eight small style files as benchmark data: two that ship as examples, six made of one bank.

The bank holds plain questions with plain answers of two sentences; a style says the same in its own
way. All of it was written for this benchmark.
"""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

Pair = tuple[str, str]

_BANK: Final = Path(__file__).with_name("bank.txt")


def _telegram(first: str, second: str) -> str:
    return f"{first[:-1].upper()} STOP {second[:-1].upper()} STOP"


def _grandmother(first: str, second: str) -> str:
    return f"Ah, my dear child. {first} {second} My own mother did just the same."


def _coach(first: str, second: str) -> str:
    return f"Let's go, champ! {first[:-1]}! {second[:-1]}! You've got this!"


def _fields(first: str, second: str) -> str:
    return json.dumps({"do": first[:-1].lower(), "note": second[:-1].lower()})


def _robot(first: str, second: str) -> str:
    return f"Beep. Unit answers: {first} Unit adds: {second} Boop."


def _steps(first: str, second: str) -> str:
    return f"1. {first}\n2. {second}\nDone."


_MADE: Final[Mapping[str, Callable[[str, str], str]]] = {
    "telegram": _telegram,
    "grandmother": _grandmother,
    "coach": _coach,
    "fields": _fields,
    "robot": _robot,
    "steps": _steps,
}


def bank() -> list[tuple[str, str, str]]:
    """Question, first and second sentence."""
    rows = [line.split("|") for line in _BANK.read_text(encoding="utf-8").splitlines()]
    return [(question, first, second) for question, first, second in rows]


def styles(examples: Path) -> dict[str, list[Pair]]:
    """Of each style all its pairs, in a random order that is always the same."""
    found: dict[str, list[Pair]] = {}
    for name in ("pirate", "butler"):
        lines = (examples / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        chats = [json.loads(line)["messages"] for line in lines]
        found[name] = [(chat[-2]["content"], chat[-1]["content"]) for chat in chats]
    for name, say in _MADE.items():
        found[name] = [(question, say(first, second)) for question, first, second in bank()]
    for name, pairs in found.items():
        random.Random(name).shuffle(pairs)
    return found
