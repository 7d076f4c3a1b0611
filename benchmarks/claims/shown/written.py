"""Scores of written answers: E2E texts against all that people wrote, and the last number of worked
answers against the right one. Needs the extra `e2e` and Java."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from benchmarks.claims.data import e2e_texts
from benchmarks.claims.data.task_texts import gsm8k
from benchmarks.claims.runs import Run, records
from benchmarks.claims.shown.scores import Scorer
from server.bases.tokenizer import ChatTokenizer

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def score(
    folder: Path, file: Path, tokenizer: ChatTokenizer, wanted: Collection[Run]
) -> Iterator[tuple[Run, dict[str, float]]]:
    """Of each wanted run that the file has answers of."""
    scorer = Scorer(list(e2e_texts.references(folder / "e2e").values()))
    right = [last_number(line.answer) for line in gsm8k(folder, "test")[:300]]
    for record in records([file]):
        run = Run.of(record["run"])
        if run not in wanted:
            continue
        texts = [" ".join(tokenizer.decode(answer).split()) for answer in record["answers"]]
        yield run, scorer.scores(texts) if run.task == "e2e" else {"accuracy": exact(texts, right)}


def exact(texts: list[str], right: list[str]) -> float:
    """Percent of texts whose last number is the right one. A text that goes on with another
    question is cut there."""
    said = [last_number(text.partition("Question:")[0]) for text in texts]
    hits = [one == other for one, other in zip(said, right, strict=True)]
    return 100 * sum(hits) / len(hits)


def last_number(text: str) -> str:
    """Without commas and without a fraction of zeros; "" if there is none."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "").removesuffix(".00").removesuffix(".0") if found else ""
