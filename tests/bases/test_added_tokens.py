"""Added tokens, gaps and padding: each prefix of any tokens reads as the plain reference says."""

import random
from collections.abc import Callable, Sequence
from functools import cache

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from server.bases.tokenizer import ChatTokenizer, load_tokenizer
from tests.bases.test_tokenizer import TEXTS, byte_fallback, byte_level, word_pieces, wrap

PLAIN = ["café", "Ñandú", "Ġx", "日本語", "👩‍👩‍👧", "naïve façade", "½", "e\u0301", "a▁b", "ÿ"]
ADDED = [
    *(AddedToken(text, normalized=False) for text in PLAIN),
    AddedToken(" ñ", lstrip=True, normalized=False),
    AddedToken("ö ", rstrip=True, normalized=False),
    AddedToken("ärger", single_word=True, normalized=True),
]
SPECIAL = [
    AddedToken("<|é|>", special=True, normalized=False),
    AddedToken("<終>", special=True),
]


def sequence_of_byte_level() -> ChatTokenizer:
    """Byte-level inside a sequence of decoders: read through decode() alone."""
    tokenizer = byte_level()
    backend = tokenizer._tokenizer.backend_tokenizer
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("zq", "q")])
    return wrap(backend, None)


def metaspace() -> ChatTokenizer:
    """As T5's: scored pieces, spaces as ▁, no bytes."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60,
        special_tokens=["<unk>", "<|end|>", "<|im_start|>", "<|im_end|>"],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS[:1] * 3, trainer)
    return wrap(backend, None)


def ends_of_words() -> ChatTokenizer:
    """As the first GPT's: </w> closes a word."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=80, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(TEXTS[:1], trainer)
    return wrap(backend, None)


KINDS: dict[str, Callable[[], ChatTokenizer]] = {
    "byte-level": byte_level,
    "sequence of byte-level": sequence_of_byte_level,
    "byte-fallback": byte_fallback,
    "word-pieces": word_pieces,
    "metaspace": metaspace,
    "ends of words": ends_of_words,
    "porch": lambda: load_tokenizer("porch"),
}


def grown(kind: str) -> ChatTokenizer:
    tokenizer = KINDS[kind]()._tokenizer
    tokenizer.add_tokens(ADDED)
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    return ChatTokenizer(tokenizer, name=kind)


@cache
def own_ids(kind: str) -> set[int]:
    """Added tokens that were the model's own before: "½" spells the byte 0xBD, "Ġx" a space and x.

    They stay that, or other characters would break.
    """
    before = KINDS[kind]()._tokenizer.get_vocab()
    return {before[text] for text in PLAIN if text in before}


def reference(tokenizer: ChatTokenizer, ids: Sequence[int], skip_special: bool) -> str:
    """The decoder of the tokenizer itself; what is between two added tokens is decoded alone."""
    hf, own = tokenizer._tokenizer, own_ids(tokenizer.name)
    shown = [it for it in ids if not (skip_special and it in tokenizer.special_ids)]
    if "ByteLevel" not in str(hf.backend_tokenizer.decoder):
        return str(hf.decode(shown, clean_up_tokenization_spaces=False))
    text, run = "", list[int]()
    for token_id in [*shown, None]:
        added = None if token_id is None else hf.added_tokens_decoder.get(token_id)
        added = None if token_id in own else added
        if token_id is None or added is not None:
            text += str(hf.decode(run, clean_up_tokenization_spaces=False))
            text, run = text + (added.content if added else ""), []
        else:
            run.append(token_id)
    return text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip_special", [True, False])
def test_each_prefix_of_any_tokens_is_the_reference(kind: str, skip_special: bool) -> None:
    tokenizer = grown(kind)
    draw = random.Random(7)
    # Of a run of byte tokens that is not UTF-8, decode() drops what a stream has shown already.
    bytes_apart = range(4, 260) if kind == "byte-fallback" else range(0)
    known = [it for it in range(len(tokenizer) + 3) if it not in bytes_apart]
    added = [*tokenizer._tokenizer.added_tokens_decoder]
    for length in (1, 2, 3, 8, 60):
        for _ in range(8):
            ids = [draw.choice(added if draw.random() < 0.3 else known) for _ in range(length)]
            stream, shown = tokenizer.stream(skip_special=skip_special), ""
            for end, token_id in enumerate(ids, 1):
                shown += stream.push(token_id)
                whole = reference(tokenizer, ids[:end], skip_special)
                assert whole.startswith(shown)
                assert whole == shown or whole.endswith("\ufffd")  # the part of a character
            assert shown + stream.flush() == tokenizer.decode(ids, skip_special=skip_special)
            assert tokenizer.decode(ids, skip_special=skip_special) == reference(
                tokenizer, ids, skip_special
            )


@pytest.mark.parametrize("kind", KINDS)
def test_an_added_token_reads_as_it_is_spelt(kind: str) -> None:
    tokenizer = grown(kind)
    for added in [*ADDED[: len(PLAIN)], *SPECIAL]:
        token_id = tokenizer._tokenizer.convert_tokens_to_ids(added.content)
        assert isinstance(token_id, int)
        spelt = added.content
        if "▁" in spelt and kind in ("byte-fallback", "metaspace"):
            continue  # those decoders show every ▁ as a space
        if token_id in own_ids(tokenizer.name) and kind != "byte-fallback":
            continue
        assert tokenizer.token_text(token_id).strip() == spelt
        assert tokenizer.token_bytes(token_id).decode().strip() == spelt
        assert tokenizer.decode([token_id], skip_special=False) == spelt


@pytest.mark.parametrize("kind", ["byte-level", "porch"])
def test_a_text_with_added_tokens_comes_back(kind: str) -> None:
    tokenizer = grown(kind)
    for text in ("x café!Ñandú 日本語", "<|é|>e\u0301 naïve façade x", "👩‍👩‍👧👩 naïve façade"):
        ids = tokenizer.encode(text)
        assert len(set(ids) & tokenizer._tokenizer.added_tokens_decoder.keys()) >= 2
        stream = tokenizer.stream(skip_special=False)
        assert "".join([*map(stream.push, ids), stream.flush()]) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    [
        "two  words, 你好!",
        "<|im_start|>user\nhi<|im_end|> é",
        " \n lead",
        "👩‍👩‍👧 café",
        *filter(None, TEXTS),
    ],
)
def test_pieces_of_a_text_are_the_text_cut_by_its_tokens(kind: str, text: str) -> None:
    tokenizer = grown(kind)
    hf = tokenizer._tokenizer
    vocab = hf.get_vocab()
    pieces = tokenizer.pieces(text)
    assert pieces is not None and "".join(pieces) == text
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[(it, vocab[it]) for it in ("<|im_start|>", "<|im_end|>")],
    )
    ids = tokenizer.encode(text, add_special=True)
    assert len(ids) == len(pieces) + 2
    around = tokenizer.pieces(text)
    assert around is not None and around[0] == ""
    assert [it.strip() for it in around] == ["", *(it.strip() for it in pieces), ""]
    assert "".join(around) == text
    if kind in ("byte-level", "porch"):
        stream = tokenizer.stream(skip_special=False)
        assert [*map(stream.push, ids[1:-1])] == pieces


def test_tokens_beyond_a_gap_have_a_name() -> None:
    """An id may be at or above the number of tokens."""
    words = {"<unk>": 0, "a": 1, "b": 5, "é": 900}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    tokenizer = ChatTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), name="gaps")
    stream = tokenizer.stream()
    assert [stream.push(it) for it in (900, 5, 3, 1, 901)] == ["é", "b", "", "a", ""]
    assert tokenizer.token_text(900) == "é"
    assert tokenizer.token_bytes(900) == "é".encode()
    assert tokenizer.token_text(3) == tokenizer.token_text(901) == ""
    assert tokenizer.nameless(903) == (2, 3, 4, *range(6, 900), 901, 902)
    assert tokenizer.nameless(4) == (2, 3)
