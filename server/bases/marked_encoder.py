"""Encodes texts with MARKs: control tokens that people wrote are text, and those of the template
are tokens. Which tokens those are is decided here.

transformers' `sanitize_control_tokens` does less: it gives no places of tokens, which training
needs, sees no token that two texts make together, and switches a tokenizer that threads share.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from secrets import token_hex
from typing import Final

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from server.bases.chats.control_texts import MARK, ControlTexts, either, unmarked

Span = tuple[int, int]

_BRACKETED: Final = re.compile(r"<(\S+)>|\[\S+\]")
# Some vocabularies have tokens for these, so that web pages take few tokens.
_HTML: Final = re.compile(
    "/?(a|b|blockquote|body|br|caption|code|div|em|h[1-6]|head|hr|html|i|img|li|ol|p|pre|s|span|"
    "strong|sub|sup|table|tbody|td|tfoot|th|thead|title|tr|u|ul)/?"
)
_BLANKS: Final = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def control_texts(tokenizer: PreTrainedTokenizerBase, template: str) -> ControlTexts:
    """The texts of the control tokens of a tokenizer that has this chat template."""
    control = _control_tokens(tokenizer, template)
    normalize = _normalizer(tokenizer)
    if normalize is None:
        return ControlTexts(control)
    model = tokenizer.backend_tokenizer.model
    normalized = {
        normalize(text)
        for text, token in control.items()
        if token.normalized or model.token_to_id(text) is not None
    }
    return ControlTexts(control, normalize, normalized - {""})


def _control_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> Mapping[str, AddedToken]:
    """Special tokens, and added ones that are in brackets or that the template writes. Added words,
    blanks and HTML's elements are what they say.
    """
    special = frozenset(tokenizer.all_special_tokens)

    def is_control(token: AddedToken) -> bool:
        text = token.content
        if token.special or text in special:
            return True
        bracketed = _BRACKETED.fullmatch(text)
        if bracketed and not _HTML.fullmatch(bracketed[1] or ""):
            return True
        return text in template and not text.replace(" ", "").isalnum()

    added = tokenizer.added_tokens_decoder.values()
    return {it.content: it for it in added if it.content.strip() and is_control(it)}


def _normalizer(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str] | None:
    """What may turn other letters into a control token's. None: nothing does. To write blanks in
    another way, as SentencePiece does, turns nothing into one.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    if normalizer is None:
        return None
    state = json.loads(normalizer.__getstate__())
    blanks = ({"type": "Prepend", "prepend": "▁"}, _BLANKS)
    if all(step in blanks for step in state.get("normalizers", [state])):
        return None
    return lambda text: str(normalizer.normalize_str(text))


class MarkedEncoder:
    """A fast tokenizer in which the control tokens have other names, that stand for those which the
    template wrote. All else is encoded as the tokenizer itself would, had it no control tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: ControlTexts) -> None:
        self._tokenizer = tokenizer
        secret = token_hex(8)  # so that nobody can write a name
        self._names = {it: f"\ufdd0{secret}{at}\ufdd1" for at, it in enumerate(control.texts)}
        longer = either(text for text in control.texts if len(text) > 1)
        single = [f"{re.escape(text)}(?!{MARK})" for text in control.texts if len(text) == 1]
        self._written = re.compile("|".join(filter(None, [longer, *single])) or "(?!)")
        added = tokenizer.added_tokens_decoder.items()
        self._control_ids = {
            token_id for token_id, token in added if token.content in self._names
        } - {tokenizer.unk_token_id}

    def encode(self, text: str) -> tuple[list[int], list[Span]] | None:
        """Token ids of a text with MARKs, and the characters of each of them in `named`. None: the
        vocabulary itself takes a text in it for a control token.
        """
        backend, own_ids = self._renamed
        encoded = backend.encode(self.named(text), add_special_tokens=False)
        if not self._control_ids.isdisjoint(it for it in encoded.ids if it not in own_ids):
            return None
        return [own_ids.get(token_id, token_id) for token_id in encoded.ids], encoded.offsets

    def named(self, text: str) -> str:
        """The text without MARKs, and with the names of the tokens that the template wrote."""
        return unmarked(self._written.sub(lambda found: self._names[found[0]], text))

    def spans(self, text: str, named: Sequence[Span]) -> list[Span]:
        """The characters of a text with MARKs that are some of those in `named`."""
        begins, ends = list[int](), list[int]()
        place = 0
        for found in [*self._written.finditer(text), None]:
            stop = found.start() if found else len(text)
            kept = [at for at in range(place, stop) if text[at] != MARK]
            begins += kept
            ends += [at + 1 for at in kept]
            if found:
                length = len(self._names[found[0]])
                begins += [found.start()] * length
                ends += [found.end()] * length
                place = found.end()
        begins.append(len(text))
        return [(begins[at], ends[to - 1] if at < to else begins[at]) for at, to in named]

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, Mapping[int, int]]:
        """The tokenizer with the names, and the ids of its added tokens in the one without."""
        own = self._tokenizer.backend_tokenizer
        renamed = Tokenizer(own.model)  # which is shared, not copied
        if own.normalizer is not None:
            renamed.normalizer = own.normalizer
        if own.pre_tokenizer is not None:
            renamed.pre_tokenizer = own.pre_tokenizer
        added = self._tokenizer.added_tokens_decoder
        tokens = [self._named_token(token) for token in added.values()]
        renamed.add_tokens(tokens)
        new = [renamed.token_to_id(token.content) for token in tokens]
        return renamed, {it: own for it, own in zip(new, added, strict=True) if it is not None}

    def _named_token(self, token: AddedToken) -> AddedToken:
        name = self._names.get(token.content)
        if name is None:
            return token
        return AddedToken(
            name,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=False,
        )
