"""Marks the control tokens that people wrote into a chat, such as `<|im_start|>`. The marks are in
the text that the template writes, and tell those tokens from its own. Knows no token ids.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, Final

MARK: Final = "\udc80"
"""Half of a surrogate pair: every way in refuses texts that hold one."""
_ESCAPED: Final = r"\udc80"  # as a template writes it that shows a value as Python or ASCII does

_PIECE_CHARACTERS: Final = 32 * 1024


class ControlTexts:
    """The texts of a tokenizer's control tokens.

    Args:
        texts: the texts, none of them empty.
        normalize: what the tokenizer makes of a text before it looks for some of its tokens.
            None: a text that looks otherwise is never taken for one.
        normalized: those tokens, normalized.
    """

    def __init__(
        self,
        texts: Iterable[str],
        normalize: Callable[[str], str] | None = None,
        normalized: Iterable[str] = (),
    ) -> None:
        self.texts = frozenset(texts)
        self._normalize, self._normalized = normalize, tuple(normalized)
        # A template may write in capitals what it was given, so capitals make no difference.
        lower = {text.lower() for text in self.texts}
        ends = {end for text in self.texts for end in (text[0], text[-1])}
        self._ends = sorted(ends | {end.swapcase() for end in ends})
        self._first = _first_characters(self.texts)
        self._heads = {text[:length] for text in lower for length in range(1, len(text))}
        self._tails = {text[length:] for text in lower for length in range(1, len(text))}
        self._longest = max(map(len, self.texts | lower), default=0)

    def without(self, texts: Iterable[str]) -> "ControlTexts":
        """The same without these."""
        return ControlTexts(self.texts.difference(texts), self._normalize, self._normalized)

    def marked(self, value: Any) -> Any:
        """A text, or a JSON value of texts, with a MARK inside each control token. A MARK is also
        where a text could be a part of one, together with what the template writes beside it.
        """
        if isinstance(value, str):
            return self._marked_text(value)
        if isinstance(value, Mapping):
            return {self.marked(key): self.marked(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.marked(item) for item in value]
        return value

    def _marked_text(self, text: str) -> str:
        for end in self._ends:
            if end in text:
                text = self._mark_ends(self._mark_inside(text))
                break
        if self._normalized and self._looks_like_one(text):
            return MARK.join(text.replace(MARK, ""))
        return text

    def _mark_inside(self, text: str) -> str:
        """Mark each control token behind its first character. Piece by piece, since no other thread
        runs while one is searched."""
        pieces = []
        for start in range(0, len(text), _PIECE_CHARACTERS):
            piece = text[start : start + _PIECE_CHARACTERS + self._longest]
            marks = [
                it.end() for it in self._first.finditer(piece) if it.end() <= _PIECE_CHARACTERS
            ]
            edges = [0, *marks, min(len(piece), _PIECE_CHARACTERS)]
            pieces.append(MARK.join(piece[at:to] for at, to in pairwise(edges)))
        return "".join(pieces)

    def _mark_ends(self, text: str) -> str:
        """Mark a text that begins with the end of a control token, or ends with its beginning.
        Blanks around do not count, since a template may strip them.
        """
        bare = text.strip()
        head, tail = bare[: self._longest].lower(), bare[-self._longest :].lower()
        if any(tail[-length:] in self._heads for length in range(1, len(tail) + 1)):
            end = len(text.rstrip())
            text = text[:end] + MARK + text[end:]
        if any(head[:length] in self._tails for length in range(1, len(head) + 1)):
            start = len(text) - len(text.lstrip())
            text = text[:start] + MARK + text[start:]
        return text

    def _looks_like_one(self, text: str) -> bool:
        """Whether the tokenizer would see a control token where a person sees another text."""
        assert self._normalize is not None
        seen = self._normalize(text.replace(MARK, "\n"))
        return any(token in seen for token in self._normalized)


def unmarked(text: str) -> str:
    """The text without its marks."""
    return text.replace(MARK, "")


def with_plain_marks(written: str, given: str) -> str:
    """What a template wrote, where marks that it has escaped are marks again. Not if what it was
    `given` spells such an escape."""
    return written if _ESCAPED in given else written.replace(_ESCAPED, MARK)


def either(texts: Iterable[str]) -> str:
    """A pattern of the longest of these texts. What they have in common is looked at once, because
    a vocabulary may have thousands of tokens that begin alike.
    """
    found = []
    for _, group in groupby(sorted({*texts} - {""}), key=lambda text: text[0]):
        alike = list(group)
        least, most = alike[0], alike[-1]
        unlike = (at for at, (a, b) in enumerate(zip(least, most, strict=False)) if a != b)
        start = least[: next(unlike, len(least))]
        rest = [text[len(start) :] for text in alike]
        behind = either(rest)
        found.append(re.escape(start) + (behind and f"(?:{behind})" + "?" * ("" in rest)))
    return "|".join(found)


def _first_characters(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds the first character of each of the texts, of those inside others too."""
    found = []
    for first, group in groupby(sorted(texts), key=lambda text: text[0]):
        rest = [text[1:] for text in group]
        found.append(re.escape(first) + ("" if "" in rest else f"(?={either(rest)})"))
    return re.compile("|".join(found) or "(?!)", re.IGNORECASE)
