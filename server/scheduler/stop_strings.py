"""Turns token ids into text, and matches stop strings in it. Knows no models, no HTTP."""

from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol


class Decoder(Protocol):
    """Incremental detokenisation: `server.bases.detokenizer.IncrementalDecoder`."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class VisibleText(NamedTuple):
    """`text` may be sent now; `stop` is the stop string that ended the answer."""

    text: str
    stop: str | None = None


class AnswerText:
    """The text of one answer as it grows.

    Text that may be the beginning of a stop string is held back until it is known not to be; the
    stop string itself is never shown. When two stop strings match, the one that begins first wins.
    """

    def __init__(self, decoder: Decoder, stops: Seq[str]) -> None:
        self._decoder = decoder
        self.stops = tuple(stops)
        self.decode = decoder.push  # once a token: as an attribute it takes one call, not two
        self._withheld = ""

    def show(self, piece: str) -> VisibleText:
        """Add what a token decoded to. Not needed where there are no stop strings."""
        text = self._withheld + piece
        match = min(
            ((at, stop) for stop in self.stops if (at := text.find(stop)) >= 0), default=None
        )
        if match is not None:
            self._withheld = ""
            return VisibleText(text[: match[0]], match[1])
        withheld = self._possible_start(text)
        self._withheld = text[len(text) - withheld :]
        return VisibleText(text[: len(text) - withheld])

    def finish(self) -> VisibleText:
        """The answer ended for another reason: show what was held back."""
        shown = self.show(self._decoder.flush())
        rest, self._withheld = self._withheld, ""
        return shown if shown.stop else VisibleText(shown.text + rest)

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins some stop string."""
        longest = min(len(text), max((len(stop) for stop in self.stops), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stops):
                return length
        return 0
