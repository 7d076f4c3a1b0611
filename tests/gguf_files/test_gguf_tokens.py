"""Tokenizers of GGUF files, against llama.cpp's."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.bases.answer_ends import AnswerEnds
from server.bases.base_files import load_base
from server.bases.gguf_files.gguf_splits import SPLITS
from server.bases.tokenizer import ChatTokenizer, load_tokenizer
from tests.gguf_files.llama_cpp import LlamaCpp
from tests.gguf_files.making import (
    ROOT,
    Vocab,
    byte_level_vocab,
    model_for,
    sentence_piece_vocab,
    write_gguf,
)

TEXTS = (
    *("", " ", "   ", "\n", "\r\n\r\n", "\t", "  two   three\n\n\n  x\t\t\ty \r\n z  "),
    *(
        "In 1234567 years, 12.5 of 3,000",
        "١٢٣ ४५ ½ ² \uff11\uff12\uff13",
        "don't I'LL we'Re it'S 'tis '\u017f 's 't",
    ),
    *(
        "ÄÖÜ äöü ß é e\u0301",
        "你好,世界 1\uff12\uff13",
        "🙂👍🏽👩\u200d👩\u200d👧 x",
        "\u00a0nb\u3000sp\u2028l",
    ),
    *("<|end|>a<|turn|> b<|begin|><tool> <tool>x<|end|> ", "<|endx|> <|end", "<|end|><|end|>"),
    *(
        "def f(x):\n    return x**2  # ok\n",
        "a\x00b",
        "$$+<=>^~|`",
        "ﬁ \uff21\uff22 İ\u0131",
        "▁a ▁▁ <0x41> <s>",
    ),
)
ODD = "aB'sT12 ३\n\r\t  .,$|é你🙂\u0301_<>🏽\u200d▁"


@dataclass
class Pair:
    """One file in both programs."""

    ours: ChatTokenizer
    theirs: LlamaCpp

    def check(self, text: str) -> None:
        ours = self.ours.encode(text, add_special=True)
        assert ours == self.theirs.tokens(text, add_special=True), text


@cache
def texts() -> list[str]:
    drawn = random.Random(1)
    pages = [(ROOT / name).read_text() for name in ("README.md", "server/bases/tokenizer.py")]
    lines = [line for page in pages for line in page.splitlines()[:60]]
    odd = ["".join(drawn.choices(ODD, k=drawn.randint(1, 30))) for _ in range(60)]
    return [*TEXTS, *lines, *odd]


def paired(folder: Path, vocab: Vocab) -> Pair:
    path = write_gguf(folder / "m.gguf", model_for(vocab, num_hidden_layers=1), vocab)
    return Pair(load_tokenizer(path), LlamaCpp(path))


@pytest.mark.parametrize("pre", [*SPLITS, None])
def test_byte_level_tokens_are_llama_cpps(tmp_path: Path, pre: str | None) -> None:
    pair = paired(tmp_path, byte_level_vocab(pre, add_bos_token=None))
    for text in texts():
        pair.check(text)


@pytest.mark.parametrize("prefix", [True, False, None])
def test_sentence_piece_tokens_are_llama_cpps(tmp_path: Path, prefix: bool | None) -> None:
    pair = paired(tmp_path, sentence_piece_vocab(add_space_prefix=prefix))
    for text in texts():
        pair.check(text)
        ids = pair.ours.encode(text)
        stream = pair.ours.stream(skip_special=False)
        streamed = "".join(map(stream.push, ids)) + stream.flush()
        assert streamed == pair.ours.decode(ids, skip_special=False)


@pytest.fixture(scope="module", params=["smollm", "llama-bpe", "pieces"])
def drawn_pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    vocab = sentence_piece_vocab() if request.param == "pieces" else byte_level_vocab(request.param)
    folder = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield paired(folder, vocab)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(max_size=60) | st.text(alphabet=ODD, max_size=40))
def test_any_text_has_llama_cpps_tokens(drawn_pair: Pair, text: str) -> None:
    drawn_pair.check(text)


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("ends", [True, False])
def test_tokens_around_a_text(tmp_path: Path, begins: bool, ends: bool) -> None:
    vocab = byte_level_vocab(add_bos_token=begins, add_eos_token=ends)
    pair = paired(tmp_path, vocab)
    pair.check("Some text")
    ids = pair.ours.encode("Some text", add_special=True)
    assert (ids[0] == 0, ids[-1] == 1) == (begins, ends)


def test_template_and_end_tokens(tmp_path: Path) -> None:
    vocab = byte_level_vocab(eot_token_id=2, eom_token_id=1)
    path = write_gguf(tmp_path / "m.gguf", model_for(vocab), vocab)
    base, tokenizer = load_base(path, device="cpu"), load_tokenizer(path)
    assert base.eos_token_ids == {1, 2}
    assert tokenizer.special_ids == {0, 1, 2, 3}
    assert tokenizer.has_chat_template
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.render(chat) == "<|turn|>user\nHi<|end|>\n<|turn|>assistant\n"
    assert AnswerEnds.of(base, tokenizer).taught == 1
    tool = len(vocab.tokens) - 1
    assert tokenizer.decode([0, tool, 1]) == "<tool>"


def test_rows_without_a_token_are_never_written(tmp_path: Path) -> None:
    vocab = byte_level_vocab()
    count = len(vocab.tokens)
    model = model_for(vocab, vocab_size=count + 6)
    padded = Vocab([*vocab.tokens, "[PAD1]", "[PAD2]"], [*vocab.types, 5, 5], vocab.fields)
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", model, padded))
    assert tokenizer.nameless(count + 6) == tuple(range(count, count + 6))
