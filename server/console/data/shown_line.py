"""A line of a file as the page shows it: runs of tokens, of which very long ones are folded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_LONGEST_RUN: Final = 400  # tokens
_KEPT: Final = 150  # of a folded run, at each of its ends


@dataclass(frozen=True)
class ShownToken:
    """A token. `kinds` are the classes that say what it is."""

    id: int
    text: str
    kinds: str


@dataclass(frozen=True)
class ShownRun:
    """Tokens that are all learnt or all not; or so many that are left out."""

    learnt: bool
    tokens: Sequence[ShownToken] = ()
    left_out: int = 0


def shown_runs(spans: Sequence[Mapping[str, Any]], *, whole: bool) -> list[ShownRun]:
    """The spans of an example, as the API gives them.

    Args:
        whole: fold nothing.
    """
    runs: list[ShownRun] = []
    for span in spans:
        learnt, tokens = span["learnt"], [_token(it) for it in span["tokens"]]
        if whole or len(tokens) <= _LONGEST_RUN:
            runs.append(ShownRun(learnt, tokens))
            continue
        runs.append(ShownRun(learnt, tokens[:_KEPT]))
        runs.append(ShownRun(learnt, left_out=len(tokens) - 2 * _KEPT))
        runs.append(ShownRun(learnt, tokens[-_KEPT:]))
    return runs


def _token(token: Mapping[str, Any]) -> ShownToken:
    text = token["text"]
    kinds = {"special": token["special"], "part": not text, "break": "\n" in text}
    return ShownToken(token["id"], text, " ".join(name for name, it in kinds.items() if it))
