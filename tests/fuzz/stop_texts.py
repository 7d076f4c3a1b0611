"""Stop strings over random tokens, against a plain reference.

The same seed is asked twice: without stops, for all tokens and their texts, and with them. The
reference reads the tokens one by one, and stops after the first with which a stop string is there.
"""

import codecs
import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

import httpx

from tests.fuzz.target import Target
from tests.fuzz.trial import Case, Verdict

SPECIAL = ("<pad>", "<s>", "</s>", "<|end|>")
_TOKENS = 40


class _Answer(NamedTuple):
    text: str
    finish: str
    stop: str | int | None
    pieces: list[bytes]  # of each token whose log-probability was told


class StopTexts:
    """Chats that end at a stop string: whole and streamed, with one answer or several."""

    name = "stops"

    def __init__(self, target: Target, *, big: bool) -> None:
        self._target = target

    def make(self, chance: Random) -> Case:
        case: Case = {"seed": chance.randrange(2**31), "heat": chance.choice([0.7, 1.0, 2.0])}
        (free,) = self._asked(case, [])
        case["stops"] = [self._stop(chance, free) for _ in range(chance.choice([1, 1, 2, 4]))]
        return case

    def _stop(self, chance: Random, free: _Answer) -> str:
        """A piece of the answer, perhaps changed; or the spelling of a special token."""
        if chance.random() < 0.15:
            return chance.choice(SPECIAL)
        start = chance.randrange(max(len(free.text), 1))
        found = free.text[start : start + chance.choice([1, 1, 2, 3, 5, 9])] or "x"
        if chance.random() < 0.3:
            found = found[:-1] + chance.choice(["e", "\ufffd", "é", " ", found[0]])
        return found

    def judge(self, case: Case) -> Verdict:
        stops: list[str] = case["stops"]
        try:
            (free,) = self._asked(case, [])
            if not stops:
                return Verdict("no stop")
            (whole,) = self._asked(case, stops)
            streamed = self._streamed(case, stops)
            copies = self._asked(case, stops, n=2)
        except httpx.HTTPStatusError as error:
            return Verdict(
                str(error.response.status_code), f"it is answered {error.response.text[:300]}"
            )
        wanted = reference(free.pieces, stops)
        outcome = "stopped" if wanted.stop is not None else "not stopped"
        told = (whole.text, whole.stop)
        if told != (wanted.text, wanted.stop):
            return Verdict(outcome, f"it stops elsewhere\nat {told}, not {(*wanted,)}")
        if whole.finish != ("stop" if wanted.stop is not None else "length"):
            return Verdict(outcome, f"it ends as {whole.finish!r} with the stop {whole.stop!r}")
        if (streamed.text, streamed.stop, streamed.pieces) != (
            whole.text,
            whole.stop,
            whole.pieces,
        ):
            return Verdict(outcome, f"streamed it is otherwise\n{streamed}\n{whole}")
        wrong = next(filter(None, map(_beyond, [whole, *copies])), None) or self._target.aftermath()
        return Verdict(outcome, wrong)

    def _body(self, case: Case, stops: Sequence[str], n: int = 1) -> dict[str, Any]:
        return {
            "model": "base",
            "messages": [{"role": "user", "content": "Say"}],
            "max_tokens": _TOKENS,
            "seed": case["seed"],
            "temperature": case["heat"],
            "ignore_eos": True,
            "logprobs": True,
            "n": n,
            **({"stop": list(stops)} if stops else {}),
        }

    def _asked(self, case: Case, stops: Sequence[str], n: int = 1) -> list[_Answer]:
        body = self._body(case, stops, n)
        response = self._target.http.post("/v1/chat/completions", json=body).raise_for_status()
        return [
            _Answer(
                choice["message"]["content"],
                choice["finish_reason"],
                choice["stop_reason"],
                [bytes(token["bytes"]) for token in choice["logprobs"]["content"]],
            )
            for choice in response.json()["choices"]
        ]

    def _streamed(self, case: Case, stops: Sequence[str]) -> _Answer:
        body = self._body(case, stops) | {"stream": True}
        response = self._target.http.post("/v1/chat/completions", json=body).raise_for_status()
        text, finish, stop, pieces = "", "", None, []
        for choice in _choices(response.text):
            text += choice["delta"].get("content") or ""
            scores = choice["logprobs"] or {"content": []}
            pieces += [bytes(token["bytes"]) for token in scores["content"]]
            if choice["finish_reason"] is not None:
                finish, stop = choice["finish_reason"], choice["stop_reason"]
        return _Answer(text, finish, stop, pieces)


def _choices(stream: str) -> Iterator[dict[str, Any]]:
    for event in stream.split("\n\n"):
        data = event.removeprefix("data: ")
        if data and data != "[DONE]":
            yield from json.loads(data)["choices"]


class Wanted(NamedTuple):
    """What is shown of an answer, and the stop string that ended it."""

    text: str
    stop: str | None


def reference(pieces: Sequence[bytes], stops: Sequence[str]) -> Wanted:
    """Read token by token: a special one shows nothing, and stops if it is spelt by a stop string.

    Of several stop strings that are complete with the same token, the one that begins first counts;
    of those that begin together, the first in the alphabet.
    """
    visible = b""
    for piece in pieces:
        if piece.decode(errors="replace") in SPECIAL:
            if (spelt := piece.decode()) in stops:
                return Wanted(visible.decode(errors="replace"), spelt)
            continue
        visible += piece
        if (found := _match(_certain(visible), stops)) is not None:
            return found
    text = visible.decode(errors="replace")
    return _match(text, stops) or Wanted(text, None)


def _match(text: str, stops: Sequence[str]) -> Wanted | None:
    found = min(((at, stop) for stop in stops if (at := text.find(stop)) >= 0), default=None)
    return None if found is None else Wanted(text[: found[0]], found[1])


def _certain(shown: bytes) -> str:
    """The text so far, without a character that may still become whole."""
    for length in (1, 2, 3):
        end = shown[-length:]
        if len(end) == length and _begins_character(end):
            return shown[:-length].decode(errors="replace")
    return shown.decode(errors="replace")


def _begins_character(end: bytes) -> bool:
    try:
        end.decode()
    except UnicodeDecodeError as error:
        return error.start == 0 and error.reason == "unexpected end of data"
    return False


def _beyond(answer: _Answer) -> str | None:
    """Log-probabilities are those of the text, and end where a stop string cut it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    told = ""
    for piece in answer.pieces:
        is_special = piece.decode(errors="replace") in SPECIAL
        if answer.stop is not None and len(told) >= len(answer.text) and piece and not is_special:
            return f"a token behind the text is scored\n{answer}"
        told += "" if is_special else decoder.decode(piece)
    told += decoder.decode(b"", final=True)
    return None if told.startswith(answer.text) else f"the scored tokens are not the text\n{answer}"
