"""Turns tokens into text, one at a time. Knows no model, no chat and no stop strings.

A token is not a text: a byte-level BPE token may hold half of a character, and a SentencePiece
token's leading space depends on what stands before it. `IncrementalDecoder` gives out a character
as soon as it is whole and never earlier, at a cost per token that does not grow with the text.
"""

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import groupby

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 4  # enough for every decoder's look-back: leading spaces, joined word pieces
_MAX_PENDING_TOKENS = 8  # an unfinished character ends within 3 tokens; beyond that it is rubbish
_SPACE = "\u2581"  # stands for a space in pieces of words, as SentencePiece writes them
_PIECE_STEPS = [
    {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP_FIRST = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@cache
def _byte_level_alphabet() -> Mapping[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for 256, 257, ..."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + index): byte for index, byte in enumerate(hidden)}
    return {chr(byte): byte for byte in printable} | shifted


def _decoder_steps(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, object]]:
    """The tokenizer's decoding steps, such as Replace, ByteFallback and Fuse, as it states them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return []
    return list(_flat_steps(json.loads(backend.decoder.__getstate__())))


def _flat_steps(state: dict[str, object]) -> Iterator[dict[str, object]]:
    children = state.get("decoders")
    if not isinstance(children, list):
        yield state
        return
    for child in children:
        yield from _flat_steps(child)


def _is_made_of_bytes(tokenizer: PreTrainedTokenizerBase, token_id: int, spelling: str) -> bool:
    """Whether the model of words makes this token of bytes: an added "½" is its token of a byte."""
    made = tokenizer.backend_tokenizer.model.tokenize(spelling)
    return [token.id for token in made] == [token_id]


class Vocabulary:
    """What each token of a tokenizer stands for. All its streams share one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._ids = frozenset(tokenizer.get_vocab().values()) | added.keys()
        steps = _decoder_steps(tokenizer)
        names = [step["type"] for step in steps]
        self.byte_level = names == ["ByteLevel"]
        self._byte_fallback = "ByteFallback" in names
        self._pieces = steps in (_PIECE_STEPS, [*_PIECE_STEPS, _STRIP_FIRST])
        self.drops_first_space = self._pieces and steps[-1] == _STRIP_FIRST
        self._bytes: dict[int, bytes | None] = {}
        self._texts: dict[int, str | None] = {}
        special = {token_id for token_id, token in added.items() if token.special}
        self.special_ids = frozenset(tokenizer.all_special_ids) | special
        # An added token is spelt as text. The byte-level decoder reads "é" in it as one byte.
        self._added_texts = {
            token_id: token.content
            for token_id, token in added.items()
            if "ByteLevel" in names
            and self._decoded([token_id]) != token.content
            and not _is_made_of_bytes(tokenizer, token_id, token.content)
        }

    @property
    def needs_no_context(self) -> bool:
        """True when the bytes of a text are those of its tokens joined, but for a first space."""
        return self.byte_level or self._pieces

    def text(self, ids: list[int], *, skip_special: bool) -> str:
        if skip_special:
            ids = [token_id for token_id in ids if token_id not in self.special_ids]
        if self._added_texts.keys().isdisjoint(ids):
            return self._decoded(ids)
        runs = groupby(ids, lambda token_id: token_id in self._added_texts)
        return "".join(
            "".join(map(self._added_texts.__getitem__, run)) if added else self._decoded([*run])
            for added, run in runs
        )

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def nameless(self, vocab_size: int) -> tuple[int, ...]:
        """See `ChatTokenizer.nameless`."""
        return tuple(it for it in range(vocab_size) if it not in self._ids)

    def token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of a token; None if the id names none."""
        if token_id not in self._ids:
            return None
        spelling = self._tokenizer.convert_ids_to_tokens(token_id)
        return spelling if isinstance(spelling, str) else None

    def whole(self, token_id: int) -> str | None:
        """The text of a token that stands for whole characters, the same wherever it is."""
        if token_id not in self._texts:
            raw = self.raw(token_id) if self.needs_no_context else None
            try:
                self._texts[token_id] = None if raw is None else raw.decode()
            except UnicodeDecodeError:
                self._texts[token_id] = None
        return self._texts[token_id]

    def raw(self, token_id: int) -> bytes | None:
        """The bytes that the token stands for wherever it is; None if its text needs context.

        An id that names no token stands for no bytes.
        """
        if token_id not in self._bytes:
            self._bytes[token_id] = self._raw(token_id)
        return self._bytes[token_id]

    def _raw(self, token_id: int) -> bytes | None:
        token = self.token(token_id)
        if token is None:
            return b""
        if token_id in self._added_texts:
            return self._added_texts[token_id].encode()
        if self.byte_level:
            alphabet = _byte_level_alphabet()
            if all(char in alphabet for char in token):
                return bytes(alphabet[char] for char in token)
            return token.encode()  # an added token, spelt as it is
        match = _BYTE_TOKEN.fullmatch(token) if self._byte_fallback else None
        if match:
            return bytes.fromhex(match[1])
        return token.replace(_SPACE, " ").encode() if self._pieces else None


class IncrementalDecoder:
    """The text of a growing list of tokens, piece by piece.

    The pieces joined are `decode()` of the whole list. One exception: where a run of byte-fallback
    tokens is not UTF-8, `decode()` gives up the whole run; here its whole characters stay.
    """

    def __init__(self, vocabulary: Vocabulary, *, skip_special: bool = True) -> None:
        self._vocabulary = vocabulary
        self._skip = vocabulary.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._window: list[int] = []  # the last tokens that need or give context
        self._shown: int | None = 0  # characters of the window already given; None: all of them
        self._num_pending = 0
        self._begun = False  # the bytes of a character, which is not yet whole
        self._drops_space = vocabulary.drops_first_space

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now certain, often empty."""
        if token_id in self._skip:
            return ""
        text = None if self._begun else self._vocabulary.whole(token_id)
        if text is not None:
            return self._without_first_space(text) if self._drops_space else text
        raw = self._vocabulary.raw(token_id)
        if raw is None:
            return self._utf8.decode(b"", final=True) + self._push_plain(token_id)
        if not raw or self._vocabulary.needs_no_context:
            text = self._utf8.decode(raw)
            self._begun = self._utf8.getstate()[0] != b""
            return self._without_first_space(text) if self._drops_space else text
        pending = self._take_pending()
        self._window.append(token_id)
        self._shown = None
        return pending + self._utf8.decode(raw)

    def unshown(self, token_id: int) -> str:
        """How a token is spelt that `push` leaves out of the text; empty for all others."""
        return self._vocabulary.token(token_id) or "" if token_id in self._skip else ""

    def flush(self) -> str:
        """Return what is left at the end of the answer: a character cut short shows as U+FFFD."""
        return self._utf8.decode(b"", final=True) + self._take_pending()

    def _without_first_space(self, text: str) -> str:
        self._drops_space = not text
        return text.removeprefix(" ")

    def _push_plain(self, token_id: int) -> str:
        if self._shown is None:
            self._shown = len(self._text(self._window))
        self._window.append(token_id)
        text = self._text(self._window)
        self._num_pending += 1
        # A tokenizer whose bytes we cannot see shows an unfinished character as U+FFFD: wait.
        if text.endswith(_REPLACEMENT) and self._num_pending < _MAX_PENDING_TOKENS:
            return ""
        piece = text[self._shown :]
        self._shrink(text)
        return piece

    def _shrink(self, text: str) -> None:
        """Forget all but the last tokens; those kept must show text, or spaces would be lost."""
        self._num_pending = 0
        self._shown = len(text)
        tail = self._window[-_CONTEXT_TOKENS:]
        if len(tail) < len(self._window) and (tail_text := self._text(tail)):
            self._window, self._shown = tail, len(tail_text)

    def _take_pending(self) -> str:
        if not self._num_pending:
            return ""
        text = self._text(self._window)
        piece = text[self._shown :]
        self._shrink(text)
        return piece

    def _text(self, ids: list[int]) -> str:
        return self._vocabulary.text(ids, skip_special=False)
