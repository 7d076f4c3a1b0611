"""The tasks as text: prompts, answers, and the answers that a prompt offers. Knows no tokens.

Every reader takes the folder that holds one subfolder per data set. What is tuned on is cut from
the training lines, or is a validation file where the reported lines are another one.
"""

import csv
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.claims.data import e2e_texts

_SEED = 7  # of the order of the lines
_TUNED = 500  # lines that rates are chosen on, at most
_REPORTED = 1000  # lines that are reported, at most


@dataclass(frozen=True)
class Line:
    """A prompt and its answer, which is one of `choices` unless it is free; `group` names the data
    set where a task joins several."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Texts:
    """The lines of one task. `train` holds more than are used: long ones are left out."""

    train: Sequence[Line]
    tune: Sequence[Line]
    test: Sequence[Line]


def _mixed(lines: Iterable[Line]) -> list[Line]:
    """In a random order that is always the same."""
    mixed = list(lines)
    random.Random(_SEED).shuffle(mixed)
    return mixed


def _cut(lines: Iterable[Line], test: Iterable[Line]) -> Texts:
    """What is tuned on is cut from the training lines."""
    mixed = _mixed(lines)
    return Texts(mixed[_TUNED:], mixed[:_TUNED], _mixed(test)[:_REPORTED])


def _table(file: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a file of tab-separated values; `columns` where it has no header."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.DictReader(text, columns or None, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for row in rows if None not in row.values()]


_NO_YES: Final = (" no", " yes")


def _sst2(folder: Path) -> Texts:
    def lines(name: str) -> Iterable[Line]:
        for row in _table(folder / "glue/sst2" / name):
            choices = (" negative", " positive")
            prompt = f"Review: {row['sentence'].strip()}\nSentiment:"
            yield Line(prompt, choices[int(row["label"])], choices)

    return _cut(lines("train_full.tsv"), lines("dev.tsv"))


def _cola(folder: Path) -> Texts:
    def lines(name: str) -> Iterable[Line]:
        for row in _table(folder / "glue/cola" / name, ("source", "label", "mark", "sentence")):
            prompt = f"Sentence: {row['sentence'].strip()}\nGrammatical:"
            yield Line(prompt, _NO_YES[int(row["label"])], _NO_YES)

    test = [*lines("in_domain_dev.tsv"), *lines("out_of_domain_dev.tsv")]
    return _cut(lines("in_domain_train.tsv"), test)


def _mrpc(folder: Path) -> Texts:
    def lines(part: str) -> Iterable[Line]:
        for row in _table(folder / f"glue/mrpc/msr-para-{part}.tsv"):
            prompt = f"First: {row['#1 String']}\nSecond: {row['#2 String']}\nSame meaning:"
            yield Line(prompt, _NO_YES[int(row["Quality"])], _NO_YES)

    tune, test = _mixed(lines("val")), _mixed(lines("test"))
    return Texts(_mixed(lines("train")), tune[:_TUNED], test[:_REPORTED])


def _entailed(row: Mapping[str, str]) -> str:
    return _NO_YES[row["label"].strip() == "entailment"]


def _rte(folder: Path) -> Texts:
    def lines(part: str, columns: Sequence[str] = ()) -> Iterable[Line]:
        for row in _table(folder / f"glue/rte/{part}.tsv", columns):
            prompt = f"Text: {row['sentence1']}\nClaim: {row['sentence2']}\nThe claim follows:"
            yield Line(prompt, _entailed(row), _NO_YES)

    tune = _mixed(lines("val", ("index", "sentence1", "sentence2", "label")))
    return Texts(_mixed(lines("train")), tune, _mixed(lines("dev")))


def _qnli(folder: Path) -> Texts:
    """The training file is not at hand: all parts are cut from the validation file."""

    def lines() -> Iterable[Line]:
        for row in _table(folder / "glue/qnli/dev.tsv"):
            prompt = f"Question: {row['question']}\nText: {row['sentence']}\nAnswered:"
            yield Line(prompt, _entailed(row), _NO_YES)

    mixed = _mixed(lines())
    return _cut(mixed[_REPORTED:], mixed[:_REPORTED])


INTENTS: Final = {
    "AddToPlaylist": " add to playlist",
    "BookRestaurant": " book a restaurant",
    "GetWeather": " get the weather",
    "PlayMusic": " play music",
    "RateBook": " rate a book",
    "SearchCreativeWork": " find a work",
    "SearchScreeningEvent": " show times",
}
"""Of the SNIPS commands, each beginning with a word of its own."""


def snips(folder: Path, pattern: str) -> list[tuple[str, str]]:
    """Commands and the names of their intents."""
    pairs = []
    for path in sorted((folder / "snips").glob(pattern)):
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        for intent, commands in content.items():
            texts = ("".join(part["text"] for part in one["data"]).strip() for one in commands)
            pairs += [(text, intent) for text in texts]
    return pairs


def _snips(folder: Path) -> Texts:
    def lines(pattern: str) -> Iterable[Line]:
        for text, intent in snips(folder, pattern):
            choices = tuple(INTENTS.values())
            yield Line(f"Command: {text}\nIntent:", INTENTS[intent], choices)

    return _cut(lines("train_*_full.json"), lines("validate_*.json"))


_SETS: Final = {
    "boolq": 3000,
    "piqa": 0,
    "social_i_qa": 0,
    "winogrande": 0,
    "ARC-Easy": 3000,
    "ARC-Challenge": 3000,
    "openbookqa": 3000,
}
"""The seven sets of `llm_adapters`, and how many of its training lines are used. Those of 0 have no
training file at hand: they show what passes over to sets that were not trained on."""

GROUPS: Final = tuple(_SETS)
_OFFERED = re.compile(r"Answer format: ([\w/]+)\s*$")


def _commonsense(folder: Path) -> Texts:
    def lines(group: str, part: str) -> list[Line]:
        file = folder / "llm_adapters" / group / f"{part}.json"
        found = []
        for row in json.loads(file.read_text(encoding="utf-8")):
            offered = _OFFERED.search(row["instruction"])
            choices = tuple(f" {choice}" for choice in offered[1].split("/")) if offered else ()
            answer = f" {row['answer']}"
            if answer in choices:
                prompt = f"{row['instruction'].strip()}\nThe correct answer is"
                found.append(Line(prompt, answer, choices, group))
        return _mixed(found)

    tuned, reported = 125, 300
    train, tune = [], []
    for group, used in _SETS.items():
        if used:
            own = lines(group, "train")
            tune += own[:tuned]
            train += own[tuned : tuned + used]
    test = [line for group in _SETS for line in lines(group, "test")[:reported]]
    return Texts(_mixed(train), tune, test)


def _e2e(folder: Path) -> Texts:
    def lines(name: str) -> list[Line]:
        return _mixed(Line(*pair) for pair in e2e_texts.pairs(folder / "e2e" / name))

    test = [Line(prompt, "") for prompt in e2e_texts.references(folder / "e2e")]
    return Texts(lines("train.txt"), lines("valid.txt")[:_TUNED], test)


_CALCULATION = re.compile(r"<<.*?>>")


def gsm8k(folder: Path, part: str) -> list[Line]:
    """Problems with worked answers, which end in "#### " and the number."""
    rows = map(json.loads, (folder / f"gsm8k/{part}.jsonl").read_text("utf-8").splitlines())
    return _mixed(
        Line(f"Question: {row['question']}\nAnswer:", f" {_CALCULATION.sub('', row['answer'])}")
        for row in rows
    )


def _gsm8k(folder: Path) -> Texts:
    train = gsm8k(folder, "train")
    return Texts(train[_TUNED:], train[:_TUNED], gsm8k(folder, "test")[:300])


READERS: Final[Mapping[str, Callable[[Path], Texts]]] = {
    "sst2": _sst2,
    "e2e": _e2e,
    "snips": _snips,
    "mrpc": _mrpc,
    "cola": _cola,
    "rte": _rte,
    "qnli": _qnli,
    "commonsense": _commonsense,
    "gsm8k": _gsm8k,
}
"""Every task by its name, in the order of their weight."""
