"""The tokenizer: text to ids and back in one go and token by token, and chats."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from server.bases.tokenizer import ChatTokenizer, load_tokenizer
from server.errors import InvalidRequest, UnsupportedModel

TEXTS = (
    "The cat sat on the porch, and the cat sat on the mat again.",
    "你好,世界。春の朝、猫が縁側で眠る。안녕하세요",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈 and 🇯🇵 and 👍🏽, then\u2003a wide space",
    "cafe\u0301 n\u0303 a\u0308\u0323 — naïve façade, Ελληνικά, العربية",
    "  two  spaces\n\n\ttabs and \r\n line ends  ",
    "",
)
CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\\n' -}}"
    "{%- if m['role'] == 'assistant' -%}"
    "{%- generation -%}{{- m['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- m['content'] + '<|im_end|>' -}}{%- endif -%}{{- '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]


def byte_level(chat_template: str | None = CHATML) -> ChatTokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return wrap(backend, chat_template)


def byte_fallback(chat_template: str | None = CHATML) -> ChatTokenizer:
    """As Llama 2's: spaces as ▁, one put in front, unknown characters as byte tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator(TEXTS[:1], trainer)
    learnt = backend.get_vocab()
    pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    for piece in sorted(learnt, key=learnt.__getitem__):
        vocab.setdefault(piece, len(vocab))
    fresh = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    fresh.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    fresh.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fresh.add_special_tokens(SPECIAL)
    return wrap(fresh, chat_template)


def word_pieces(chat_template: str | None = None) -> ChatTokenizer:
    """As BERT's: `##` joins, and the decoder moves punctuation."""
    words = ["[UNK]", *SPECIAL, "the", "cat", "##s", "sat", ",", ".", "do", "##n", "'", "t"]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return wrap(backend, chat_template)


def wrap(backend: Tokenizer, chat_template: str | None) -> ChatTokenizer:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|end|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = chat_template
    return ChatTokenizer(tokenizer, name="tiny")


KINDS = {"byte-level": byte_level, "byte-fallback": byte_fallback, "word-pieces": word_pieces}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> ChatTokenizer:
    return KINDS[request.param]()


def pieces(tokenizer: ChatTokenizer, ids: Sequence[int], skip_special: bool = True) -> list[str]:
    stream = tokenizer.stream(skip_special=skip_special)
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("skip_special", [True, False])
def test_pieces_join_to_the_whole(tokenizer: ChatTokenizer, text: str, skip_special: bool) -> None:
    special = tokenizer.eos_token_id
    assert special is not None
    ids = tokenizer.encode(text)
    ids = [*ids, special, *ids]
    shown = pieces(tokenizer, ids, skip_special)
    assert "".join(shown) == tokenizer.decode(ids, skip_special=skip_special)


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_splits_a_character(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    shown = pieces(tokenizer, tokenizer.encode(text))
    assert "\ufffd" not in "".join(shown)
    assert "".join(shown) == text
    assert shown[-1] == ""


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_a_character_is_shown_as_soon_as_it_is_whole(kind: str) -> None:
    tokenizer = KINDS[kind]()
    stream = tokenizer.stream()
    for char in "a𝄞é日":
        *parts, last = tokenizer.encode(char)[-len(char.encode()) :]
        assert [stream.push(part).strip() for part in parts] == [""] * len(parts)
        assert stream.push(last) == char


def test_any_tokens_in_any_order_join_to_the_whole() -> None:
    tokenizer = byte_level()
    draw = random.Random(5)
    for length in (1, 2, 3, 5, 50, 400):
        ids = [draw.randrange(len(tokenizer) + 3) for _ in range(length)]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("skip_special", [True, False])
def test_any_pieces_of_words_in_any_order_join_to_the_whole(skip_special: bool) -> None:
    """Bytes apart: of a run that is not UTF-8 more stays here than in decode()."""
    tokenizer = byte_fallback()
    draw = random.Random(5)
    known = [it for it in range(len(tokenizer)) if not 4 <= it < 260]
    for length in (1, 2, 3, 5, 50, 400):
        for _ in range(5):
            ids = [draw.choice(known) for _ in range(length)]
            shown = pieces(tokenizer, ids, skip_special)
            assert "".join(shown) == tokenizer.decode(ids, skip_special=skip_special)


def test_pieces_whose_decoder_is_not_known_join_to_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes are seen, the rest is read through decode()."""
    tokenizer = byte_fallback()
    monkeypatch.setattr(tokenizer._vocabulary, "_pieces", False)
    monkeypatch.setattr(tokenizer._vocabulary, "drops_first_space", False)
    for text in TEXTS:
        assert "".join(pieces(tokenizer, tokenizer.encode(text))) == text


def test_pieces_of_words_cost_no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_fallback()
    text = TEXTS[0] + " 你好"
    ids = tokenizer.encode(text)

    def never(*_: object, **__: object) -> str:
        raise AssertionError("a list of tokens was decoded")

    monkeypatch.setattr(tokenizer._vocabulary, "text", never)
    assert "".join(pieces(tokenizer, ids)) == text


def test_random_texts_join_to_the_whole(tokenizer: ChatTokenizer) -> None:
    draw = random.Random(6)
    for _ in range(50):
        text = "".join(draw.choice("the cat sat,. 你🏽é\u0301") for _ in range(30))
        ids = tokenizer.encode(text)
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_whole_characters_survive_a_broken_byte_run() -> None:
    tokenizer = byte_fallback()
    both, letter = tokenizer.encode("你好")[-6:], tokenizer.encode("a")[-1:]
    assert "".join(pieces(tokenizer, [*both[:4], *letter, *both[3:]])) == "你\ufffda好"


def test_an_unseen_byte_vocabulary_holds_unfinished_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tokenizer whose decoder cannot be inspected is read through decode() alone."""
    tokenizer = byte_level()
    monkeypatch.setattr(tokenizer._vocabulary, "byte_level", False)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        shown = pieces(tokenizer, ids)
        assert "".join(shown) == text
        assert not any("\ufffd" in piece for piece in shown)


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_cost_grows_with_the_length_not_its_square(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode(TEXTS[0] + TEXTS[1])

    def seconds(repeats: int) -> float:
        start = time.thread_time()
        pieces(tokenizer, ids * repeats)
        return time.thread_time() - start

    seconds(1)
    short = min(seconds(30) for _ in range(5))
    assert min(seconds(240) for _ in range(3)) < 8 * 3 * short  # a square would take 64 times


def test_tokens_of_a_text_join_to_it(tokenizer: ChatTokenizer) -> None:
    text = "the cat sat, the cats don't. 你好"
    ids = tokenizer.encode(text)
    joined = b"".join(map(tokenizer.token_bytes, ids)).decode()
    assert joined.lstrip() == tokenizer.decode(ids, skip_special=False)
    for token_id in ids:
        shown = tokenizer.token_bytes(token_id).decode(errors="replace")
        assert tokenizer.token_text(token_id) == shown


def test_an_empty_prompt_is_the_token_that_begins_a_text(tokenizer: ChatTokenizer) -> None:
    begin = tokenizer._tokenizer.bos_token_id
    assert tokenizer.prompt("") == [begin]
    assert tokenizer.pieces("") == [""]
    assert tokenizer.prompt("the cat") == tokenizer.encode("the cat", add_special=True)


def test_without_a_begin_token_it_is_the_end_token() -> None:
    inner = byte_level()._tokenizer
    inner.bos_token = None
    assert ChatTokenizer(inner).prompt("") == [inner.eos_token_id]
    inner.eos_token = None
    with pytest.raises(InvalidRequest, match="no token that begins or ends a text: give a prompt"):
        ChatTokenizer(inner).prompt("")


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello 👋"},
    {"role": "user", "content": "Bye"},
]


def test_chat_is_what_the_template_says() -> None:
    tokenizer = byte_level()
    text = tokenizer.decode(tokenizer.chat(CHAT), skip_special=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello 👋<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_plain_format_for_a_tokenizer_without_template() -> None:
    tokenizer = byte_level(None)
    assert not tokenizer.has_chat_template
    text = tokenizer.decode(tokenizer.chat(CHAT), skip_special=False)
    assert text == (
        "Be brief.\n\nUser:\nHi\n\nAssistant:\nHello 👋<|im_end|>\n\nUser:\nBye\n\nAssistant:\n"
    )


def test_text_parts_are_joined() -> None:
    tokenizer = byte_level()
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert tokenizer.chat([{"role": "user", "content": parts}]) == tokenizer.chat(
        [{"role": "user", "content": "Hello"}]
    )


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "messages is empty"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 0 .*'image_url'"),
        ([{"content": "no role"}], "chat template of tiny refuses"),
    ],
)
def test_bad_messages_are_refused_in_a_sentence(
    messages: list[dict[str, object]], says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        byte_level().chat(messages)
    assert caught.value.param == "messages"


def test_what_the_template_refuses_is_told() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        byte_level(template).chat(CHAT)


def test_load_from_a_folder(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer._tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.chat(CHAT) == tokenizer.chat(CHAT)
    assert loaded.eos_token_id == tokenizer.eos_token_id


def test_a_long_text_logs_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scheduler refuses what is too long; transformers' warning would tell an operator else."""
    tokenizer = byte_level()._tokenizer
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(tmp_path)
    assert len(load_tokenizer(tmp_path).encode("word " * 50)) > 8
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_no_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no tokenizer can be loaded from") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


SETTINGS = (
    "{{- 'think' if enable_thinking else 'answer' -}}{{- reasoning_effort | default('') -}}"
    "{%- for m in messages -%}{{- m['content'] + '|' -}}{%- endfor -%}"
    "{%- for t in things or [] -%}{{- t['name'] + 1 -}}{%- endfor -%}"
)


def test_a_template_reads_its_settings() -> None:
    tokenizer = byte_level(SETTINGS)
    cases: list[tuple[dict[str, object], str]] = [
        ({}, "answerHi|"),
        ({"enable_thinking": True}, "thinkHi|"),
        ({"enable_thinking": False, "reasoning_effort": "low"}, "answerlowHi|"),
        ({"nothing reads it": [1]}, "answerHi|"),
    ]
    for settings, text in cases:
        assert tokenizer.render(CHAT[-1:], settings=settings) == text.replace(
            "Hi", str(CHAT[-1]["content"])
        )
    with pytest.raises(InvalidRequest, match="refuses these messages with these chat_template_kw"):
        tokenizer.render(CHAT, settings={"things": [{"name": "x"}]})


@pytest.mark.parametrize(
    "name",
    [
        *("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template"),
        *("conversation", "tokenize", "return_tensors", "documents", "eos", "eos_token"),
        *("raise_exception", "self"),
    ],
)
def test_a_setting_shadows_nothing(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"chat_template_kwargs has {name}, ") as caught:
        byte_level(SETTINGS).chat(CHAT, settings={"enable_thinking": True, name: "x"})
    assert caught.value.param == "chat_template_kwargs"


def test_an_answer_may_go_on_with_the_last_message() -> None:
    tokenizer = byte_level()
    begun = [*CHAT[:1], {"role": "assistant", "content": "I think"}]
    assert tokenizer.render(begun, continues=True, add_generation_prompt=False).endswith(
        "<|im_start|>assistant\nI think"
    )
    assert tokenizer.decode(tokenizer.chat(begun, continues=True)).endswith("I think")


def test_earlier_reasoning_is_for_templates_that_read_it() -> None:
    chat = [{"role": "assistant", "content": "b", "reasoning_content": "why"}]
    with pytest.raises(InvalidRequest, match="has no place for reasoning_content: leave them out"):
        byte_level().chat(chat)
    reads = "{%- for m in messages -%}{{- m['reasoning_content'] + m['content'] -}}{%- endfor -%}"
    assert byte_level(reads).render(chat) == "whyb"
