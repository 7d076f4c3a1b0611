"""The E2E NLG data as people write it.

The folder holds what its authors published: `train.txt`, `valid.txt` and `test.txt`, lines of
`meaning||text` whose texts are split into words, and `testset_w_refs.csv`, the lines of the last
with their texts as people wrote them.
"""

import csv
import re
from pathlib import Path

_JOINS = (
    (re.compile(r" ([.,;:!?%)])"), r"\1"),
    (re.compile(r"([(£$]) "), r"\1"),
    (re.compile(r" ?([-/]) ?"), r"\1"),
    (re.compile(r" (n't|'(?:s|re|ve|ll|d|m|t))\b", re.IGNORECASE), r"\1"),
)


def natural(text: str) -> str:
    """A text split into words, as people write it: "family - friendly ." to "family-friendly."

    97 % of the validation and test lines become exactly their published texts.
    """
    text = " ".join(text.split())
    for pattern, joined in _JOINS:
        text = pattern.sub(joined, text)
    return text


def prompt_of(meaning: str) -> str:
    """The prompt of every method: "name: The Vaults | Type: pub" and a line break."""
    return f"{natural(meaning)}\n"


def pairs(file: Path) -> list[tuple[str, str]]:
    """Meaning and text of each line of a `.txt` file, both as people write them."""
    split = (line.split("||") for line in file.read_text(encoding="utf-8").splitlines())
    return [(prompt_of(meaning), natural(text)) for meaning, text in split]


def written(file: Path) -> list[tuple[str, str]]:
    """Meaning and text of each line of a `.csv` file, as they stand there."""
    with file.open(encoding="utf-8", newline="") as lines:
        return [(row["mr"], " ".join(row["ref"].split())) for row in csv.DictReader(lines)]


def references(folder: Path) -> dict[str, list[str]]:
    """Of each of the 630 test meanings, by its prompt and in order: all texts that people wrote."""
    texts: dict[str, list[str]] = {}
    split = pairs(folder / "test.txt")
    for (prompt, _), (_, text) in zip(split, written(folder / "testset_w_refs.csv"), strict=True):
        texts.setdefault(prompt, []).append(text)
    return texts
