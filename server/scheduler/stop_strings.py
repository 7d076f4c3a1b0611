"""Turns token ids into text, and matches stop strings in it. Knows no models, no HTTP."""

from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import Final, NamedTuple, Protocol

_FIRST_MARK: Final = 0xD800  # surrogates, which are in no text
_NUM_MARKS: Final = 2048


class Decoder(Protocol):
    """Incremental detokenisation: `server.bases.detokenizer.IncrementalDecoder`."""

    def push(self, token_id: int) -> str: ...

    def unshown(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class NewDecoder(Protocol):
    """Makes the decoder of one answer: `server.bases.tokenizer.ChatTokenizer.stream`."""

    def __call__(self, *, skip_special: bool) -> Decoder: ...


class VisibleText(NamedTuple):
    """`text` may be sent now; `stop` is the stop string that ended the answer."""

    text: str
    stop: str | None = None


class AnswerText:
    """The text of one answer as it grows.

    Text that may be the beginning of a stop string is held back until it is known not to be; the
    stop string itself is not shown, unless `include_stop`. When two stop strings match, the one
    that begins first wins.

    Special tokens are not in the text, but a stop string may spell them. So there are two forms of
    the text. In the second, a mark stands for each special token that a stop string spells, and the
    stop strings have marks too. A match in either form ends the answer.
    """

    def __init__(self, decoder: Decoder, stops: Seq[str], *, include_stop: bool = False) -> None:
        self._decoder = decoder
        self._include_stop = include_stop
        self.stops = tuple(stops)
        self.decode = decoder.push  # once a token: as an attribute it takes one call, not two
        self._withheld = ""
        self._marks: dict[str, str] = {}
        self._marked_stops = {stop: stop for stop in self.stops}
        self._marked = ""  # what is withheld of the second form, once it has marks

    def show(self, piece: str, token_id: int | None = None, *, may_end: bool = True) -> VisibleText:
        """Add what a token decoded to. Not needed where there are no stop strings.

        Where the answer may not end yet, a stop string that is whole is text like any other.
        """
        unshown = "" if token_id is None else self._decoder.unshown(token_id)
        mark = self._mark(unshown) if unshown else ""
        text = self._withheld + piece
        found = [(len(text) - at, it) for it in self.stops if (at := text.find(it)) >= 0]
        if self._marks:
            self._marked += piece + mark
            found += self._found_marked()
        if found and may_end:
            length, stop = min(found, key=lambda match: (-match[0], match[1]))
            self._withheld = self._marked = ""
            # A character that is not whole comes before a special token.
            rest = self._decoder.flush() if mark and not length else ""
            rest += stop if self._include_stop else ""
            return VisibleText(text[: len(text) - length] + rest, stop)
        withheld = _possible_start(text, self.stops)
        if self._marks:
            start = _possible_start(self._marked, self._marked_stops)
            self._marked = self._marked[len(self._marked) - start :]
            withheld = max(withheld, _num_shown(self._marked))
        self._withheld = text[len(text) - withheld :]
        return VisibleText(text[: len(text) - withheld])

    def finish(
        self, piece: str = "", token_id: int | None = None, *, may_end: bool = True
    ) -> VisibleText:
        """The answer ended for another reason, a token perhaps: show what was held back."""
        shown = self.show(piece + self._decoder.flush(), token_id, may_end=may_end)
        rest, self._withheld = self._withheld, ""
        return shown if shown.stop else VisibleText(shown.text + rest)

    def _mark(self, unshown: str) -> str:
        """The mark of a special token; empty if no stop string spells it."""
        if unshown not in self._marks and any(unshown in stop for stop in self.stops):
            if not self._marks:
                self._marked = self._withheld
            mark = self._marks[unshown] = chr(_FIRST_MARK + len(self._marks) % _NUM_MARKS)
            self._marked_stops = {
                marked.replace(unshown, mark): stop for marked, stop in self._marked_stops.items()
            }
        return self._marks.get(unshown, "")

    def _found_marked(self) -> list[tuple[int, str]]:
        """The matches in the form with marks: characters of the text from there, and the stop."""
        return [
            (_num_shown(self._marked[at:]), stop)
            for marked, stop in self._marked_stops.items()
            if (at := self._marked.find(marked)) >= 0
        ]


def _possible_start(text: str, stops: Collection[str]) -> int:
    """Length of the longest end of `text` that begins some stop string."""
    longest = min(len(text), max((len(stop) for stop in stops), default=1) - 1)
    for length in range(longest, 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def _num_shown(marked: str) -> int:
    return sum(not _is_mark(char) for char in marked)


def _is_mark(char: str) -> bool:
    return _FIRST_MARK <= ord(char) < _FIRST_MARK + _NUM_MARKS
