"""Token ids to text that is safe to show. Knows stop strings, not models or HTTP."""

from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol


class Decoder(Protocol):
    """Incremental detokenisation: `server.bases.tokenizer.IncrementalDecoder`."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class Shown(NamedTuple):
    """`text` may be sent now; `piece` is what the token decoded to; `stop` ended the answer."""

    text: str
    piece: str
    stop: str | None = None


class AnswerText:
    """The text of one answer as it grows.

    Text that may be the beginning of a stop string is held back until it is known not to be; the
    stop string itself is never shown. When two stop strings match, the one that begins first wins.
    """

    def __init__(self, decoder: Decoder, stops: Seq[str]) -> None:
        self._decoder = decoder
        self._stops = tuple(stops)
        self._held = ""

    def push(self, token_id: int) -> Shown:
        piece = self._decoder.push(token_id)
        return self._show(piece) if self._stops else Shown(piece, piece)

    def finish(self) -> Shown:
        """The answer ended for another reason: release what was held."""
        shown = self._show(self._decoder.flush())
        rest, self._held = self._held, ""
        return shown if shown.stop else Shown(shown.text + rest, shown.piece)

    def _show(self, piece: str) -> Shown:
        text = self._held + piece
        found = min(
            ((at, stop) for stop in self._stops if (at := text.find(stop)) >= 0), default=None
        )
        if found is not None:
            self._held = ""
            return Shown(text[: found[0]], piece, found[1])
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return Shown(text[: len(text) - keep], piece)

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins some stop string."""
        longest = min(len(text), max((len(stop) for stop in self._stops), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
