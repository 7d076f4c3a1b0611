"""Makes tokens of texts that begin alike, such as the prompts of one chat: each reads what is new.

Without it, a chat of many answers would take a time that grows with the square of its length.
"""

from bisect import bisect, bisect_right

from server.bases.tokenizer import ChatTokenizer


class PrefixEncoder:
    """Encodes as `ChatTokenizer.encode` does. Keeps the longest text: give that one first."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = ""
        self._ids: list[int] = []
        self._marks: list[int] = []  # places of tokens that no token spans
        self._mark_spans: list[tuple[int, int]] = []  # the characters of each

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`."""
        if len(text) > len(self._text):
            return self._read(text)
        number = bisect_right(self._mark_spans, self._common(text), key=lambda span: span[1]) - 1
        if number < 0:
            return self._tokenizer.encode(text)
        place = self._marks[number]
        rest = self._tokenizer.encode(text[self._mark_spans[number][0] :])
        if rest[:1] != [self._ids[place]]:  # the token is another one where a text begins
            return self._tokenizer.encode(text)
        return self._ids[:place] + rest

    def _read(self, text: str) -> list[int]:
        ids, spans = self._tokenizer.encode_with_spans(text)
        self._text, self._ids = text, ids
        self._marks = [i for i in range(len(spans)) if ids[i] in self._tokenizer.added_ids]
        self._mark_spans = [spans[i] for i in self._marks]
        return list(ids)

    def _common(self, text: str) -> int:
        """How many characters `text` has in common with the longest text."""
        if self._text.startswith(text):
            return len(text)
        lengths = range(1, len(text) + 1)
        return bisect(lengths, False, key=lambda n: not self._text.startswith(text[:n]))
