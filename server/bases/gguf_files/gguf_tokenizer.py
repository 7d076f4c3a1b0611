"""The tokenizer of a GGUF file, as transformers keeps one: vocabulary, cuts, special tokens."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from server.bases.gguf_files.gguf_header import GgufHeader
from server.bases.gguf_files.gguf_splits import SPLITS, Splits
from server.errors import UnsupportedModel

_KEY: Final = "tokenizer.ggml."
_LONGEST: Final = 512  # characters of a token; the longest that models have are runs of spaces
_SPACE: Final = "\u2581"  # stands for a space in pieces of words, as SentencePiece writes them


class _Type(IntEnum):
    """What a token is: `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def tokenizer_of(header: GgufHeader) -> PreTrainedTokenizerFast:
    """Build the tokenizer that a file describes, its chat template with it.

    Raises:
        UnsupportedModel: it is of a kind that is not read, or contradicts itself.
    """
    tokens, types = _tokens(header)
    kind = header.get(_KEY + "model", str)
    if kind == "gpt2":
        tokenizer, begins = _byte_level(header, tokens, types)
    elif kind == "llama":
        tokenizer, begins = _sentence_pieces(header, tokens, types), True
    else:
        raise UnsupportedModel(
            f"GGUF file {header.path.name!r} has a tokenizer of kind {kind[:60]!r}, and 'gpt2' and "
            "'llama' are read: give the model's folder or hub id instead"
        )
    named = _named(header, tokens, kind)
    # Byte-level vocabularies merge nothing into these, and texts that spell them are these tokens.
    tokenizer.add_tokens(
        [
            AddedToken(token, special=type_ != _Type.USER_DEFINED, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if token and type_ in (_Type.CONTROL, _Type.USER_DEFINED, _Type.UNKNOWN)
        ]
    )
    _put_around(header, tokenizer, named, begins=begins)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=header.get(_architecture(header) + ".context_length", int),
        clean_up_tokenization_spaces=False,
        chat_template=_chat_template(header),
        **{name: tokens[token_id] for name, token_id in named.items()},
    )


def end_ids(header: GgufHeader) -> list[int]:
    """The tokens that end an answer: of a text, of a turn, of a message."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    count = len(_tokens(header)[0])
    found = [_token_id(header, key, count) for key in keys]
    return list(dict.fromkeys(token_id for token_id in found if token_id is not None))


def _architecture(header: GgufHeader) -> str:
    return header.get("general.architecture", str)


def _chat_template(header: GgufHeader) -> str | None:
    return header.get("tokenizer.chat_template", str, "") or None


def _tokens(header: GgufHeader) -> tuple[list[str], list[int]]:
    tokens = _texts(header, "tokens")
    if max(map(len, tokens)) > _LONGEST:
        raise _wrong(header, "tokens", f"has a token of more than {_LONGEST} characters")
    types = [int(_Type.NORMAL)] * len(tokens)
    if _KEY + "token_type" in header.fields:
        types = [int(type_) for type_ in _numbers(header, "token_type", len(tokens))]
    embedding = header.tensors.get("token_embd.weight")
    if embedding is not None and len(tokens) > embedding.shape[0]:
        raise _wrong(
            header, "tokens", f"names {len(tokens)} tokens, and {embedding.shape[0]} have weights"
        )
    return tokens, types


def _numbers(header: GgufHeader, key: str, count: int) -> list[float]:
    values = header.fields.get(_KEY + key)
    if not isinstance(values, list) or len(values) != count or isinstance(values[0], str):
        raise _wrong(header, key, f"is no list of {count} numbers")
    return [value for value in values if not isinstance(value, str)]


def _texts(header: GgufHeader, key: str) -> list[str]:
    values = header.fields.get(_KEY + key)
    if not isinstance(values, list) or not values or not isinstance(values[0], str):
        raise _wrong(header, key, "is no list of texts")
    return [str(value) for value in values]


def _byte_level(
    header: GgufHeader, tokens: Sequence[str], types: Sequence[int]
) -> tuple[Tokenizer, bool]:
    pre = header.get(_KEY + "pre", str, "default")
    splits = SPLITS.get(pre)
    if splits is None:
        raise UnsupportedModel(
            f"GGUF file {header.path.name!r} has {_KEY}pre={pre[:60]!r}, a way to cut texts that "
            f"is not known; known are {', '.join(SPLITS)}: give the model's folder or hub id "
            "instead"
        )
    pairs = []
    for merge in _texts(header, "merges"):
        space = merge.find(" ", 1)
        if not 0 < space < len(merge) - 1:
            raise _wrong(header, "merges", f"has {merge[:60]!r}, which is no pair")
        pairs.append((merge[:space], merge[space + 1 :]))
    return _cut(Tokenizer(_model(header, tokens, types, pairs, splits)), splits), splits.begins


def _model(
    header: GgufHeader,
    tokens: Sequence[str],
    types: Sequence[int],
    pairs: list[tuple[str, str]],
    splits: Splits,
) -> BPE:
    vocabulary = _vocabulary(tokens, types)
    try:
        return BPE(vocabulary, pairs, ignore_merges=splits.whole_words)
    except Exception as error:  # tokenizers raises plain exceptions
        raise _wrong(header, "merges", f"does not fit the tokens ({str(error)[:200]})") from error


def _vocabulary(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """The ids of the tokens that have a name. What only pads the embedding has none."""
    return {
        token: token_id
        for token_id, (token, type_) in enumerate(zip(tokens, types, strict=True))
        if token and type_ != _Type.UNUSED
    }


def _cut(tokenizer: Tokenizer, splits: Splits) -> Tokenizer:
    cuts = [
        pre_tokenizers.Split(Regex(expression), behavior="isolated")
        for expression in splits.expressions
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_pieces(header: GgufHeader, tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    scores = _numbers(header, "scores", len(tokens))
    vocabulary = _vocabulary(tokens, types)
    if any(f"<0x{byte:02X}>" not in vocabulary for byte in range(256)):
        raise _wrong(header, "tokens", "lacks tokens of single bytes, <0x00> to <0xFF>")
    tokenizer = Tokenizer(
        BPE(
            vocabulary,
            _merges(vocabulary, types, scores),
            byte_fallback=True,
        )
    )
    prefixed = header.get(_KEY + "add_space_prefix", bool, True)
    spaces = normalizers.Replace(" ", _SPACE)
    first = [normalizers.Prepend(_SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*first, spaces])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(
    vocabulary: dict[str, int], types: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """SentencePiece's scores as merges: a token of a higher score is made first."""
    ranked = []
    for token, token_id in vocabulary.items():
        if types[token_id] not in (_Type.NORMAL, _Type.USER_DEFINED):
            continue
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair[0] in vocabulary and pair[1] in vocabulary:
                ranked.append((-scores[token_id], token_id, cut, pair))
    return [pair for *_, pair in sorted(ranked)]


def _named(header: GgufHeader, tokens: Sequence[str], kind: str) -> dict[str, int]:
    """The tokens with a role in every text, as transformers names the roles."""
    usual = {"bos": 1, "eos": 2, "unknown": 0} if kind == "llama" else {}
    named = {}
    for role, key in (
        *(("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown")),
        ("pad_token", "padding"),
    ):
        token_id = _token_id(header, f"{key}_token_id", len(tokens), usual.get(key))
        if token_id is not None and tokens[token_id]:
            named[role] = token_id
    return named


def _token_id(header: GgufHeader, key: str, count: int, default: int | None = None) -> int | None:
    value = header.fields.get(_KEY + key, default)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < count:
        raise _wrong(header, key, f"is {value!r}, and the tokens are 0 to {count - 1}")
    return value


def _put_around(
    header: GgufHeader, tokenizer: Tokenizer, named: dict[str, int], *, begins: bool
) -> None:
    """Put the tokens around a text that the file asks for."""
    before = header.get(_KEY + "add_bos_token", bool, begins) and "bos_token" in named
    behind = header.get(_KEY + "add_eos_token", bool, False) and "eos_token" in named
    first, last = ["B:0"] if before else [], ["E:0"] if behind else []
    if first or last:
        ids = [("B", named["bos_token"])] if before else []
        ids += [("E", named["eos_token"])] if behind else []
        tokenizer.post_processor = TemplateProcessing(
            single=[*first, "$A:0", *last],
            pair=[*first, "$A:0", *last, *first, "$B:0", *last],
            special_tokens=ids,
        )


def _wrong(header: GgufHeader, key: str, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"GGUF file {header.path.name!r} contradicts itself: {_KEY}{key} {what}; convert the model "
        "again, or give its folder or hub id"
    )
