"""GGUF files that are not read: each is refused in one sentence that names the value."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.bases.base_files import check_config
from server.bases.gguf_files.gguf_header import read_header
from server.errors import UnsupportedModel
from tests.gguf_files.making import Quant, byte_level_vocab, model_for, packed, write_gguf

VOCAB = byte_level_vocab()
TOKENS = len(VOCAB.tokens)
WHOLE = model_for(VOCAB)


def written(folder: Path, **changes: Any) -> Path:
    return write_gguf(folder / "m.gguf", WHOLE, VOCAB, **changes)


def refused(path: Path) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        check_config(path)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 900
    assert "give" in said or "again" in said or "join" in said, "no remedy"
    return said


TOKENIZER = "tokenizer.ggml."
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"general.architecture": "gemma3"}, "architecture 'gemma3'"),
    ({"general.architecture": None}, "has no general.architecture"),
    ({"general.alignment": 33}, "general.alignment is 33"),
    ({"split.count": 3}, "one of 3 pieces"),
    ({"llama.expert_count": 8}, "llama.expert_count"),
    ({"llama.block_count": None}, "has no llama.block_count"),
    ({"llama.block_count": 0}, "llama.block_count=0"),
    ({"llama.block_count": "2"}, "llama.block_count='2'"),
    ({"llama.block_count": 10_000_000}, "10000000"),
    ({"llama.block_count": 3}, "blk.2.attn_q.weight is missing"),
    ({"llama.block_count": 1}, "tensors that a model of type llama does not have"),
    ({"llama.context_length": None}, "has no llama.context_length"),
    ({"llama.embedding_length": 512}, "token_embd.weight has the shape"),
    ({"llama.feed_forward_length": [128, 256]}, "layers of several shapes"),
    ({"llama.attention.head_count": 2**32 - 1}, "llama.attention.head_count=4294967295"),
    ({"llama.attention.head_count_kv": 4}, "blk.0.attn_k.weight has the shape"),
    ({"llama.attention.key_length": 63}, "llama.attention.value_length"),
    ({"llama.attention.value_length": 32}, "llama.attention.value_length"),
    ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon"),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon=nan"),
    ({"llama.attention.sliding_window": 128}, "a sliding window"),
    ({"llama.rope.dimension_count": 32}, "rotated in part"),
    ({"llama.rope.scaling.type": "odd", "llama.rope.scaling.factor": 2.0}, "type 'odd'"),
    ({TOKENIZER + "model": "bert"}, "kind 'bert'"),
    ({TOKENIZER + "model": None}, "has no tokenizer.ggml.model"),
    ({TOKENIZER + "pre": "unheard-of"}, "pre='unheard-of'"),
    ({TOKENIZER + "pre": "gpt-4o"}, "pre='gpt-4o'"),
    ({TOKENIZER + "tokens": None}, "tokens is no list"),
    ({TOKENIZER + "tokens": [*VOCAB.tokens[:-1], "x" * 600]}, "more than 512 characters"),
    ({TOKENIZER + "tokens": VOCAB.tokens * 2}, "token_type is no list of"),
    ({TOKENIZER + "token_type": ["a"] * TOKENS}, "token_type is no list of"),
    ({TOKENIZER + "merges": None}, "merges is no list"),
    ({TOKENIZER + "merges": ["ab"]}, "'ab', which is no pair"),
    ({TOKENIZER + "merges": ["a nosuchtoken"]}, "merges does not fit"),
    ({TOKENIZER + "eos_token_id": TOKENS}, "0 to"),
    ({TOKENIZER + "bos_token_id": -1.5}, "bos_token_id is -1.5"),
    ({TOKENIZER + "add_bos_token": 1}, "add_bos_token=1"),
    ({"tokenizer.chat_template": 3}, "chat_template=3"),
]


@pytest.mark.parametrize(("fields", "said"), FIELDS, ids=lambda value: str(value)[:40])
def test_fields(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    assert said in refused(written(tmp_path, fields=fields))


def test_too_many_tokens(tmp_path: Path) -> None:
    model = model_for(VOCAB, vocab_size=TOKENS - 1)
    path = write_gguf(tmp_path / "m.gguf", model, VOCAB)
    assert f"{TOKENS} tokens, and {TOKENS - 1} have weights" in refused(path)


def test_tensors(tmp_path: Path) -> None:
    norm = "blk.1.ffn_norm.weight"
    assert f"{norm} is missing" in refused(written(tmp_path, but=[norm]))
    assert "token_embd.weight" in refused(written(tmp_path, but=["token_embd.weight"]))
    assert "'blk.0.odd.weight'" in refused(
        written(tmp_path, extra={"blk.0.odd.weight": np.zeros((4, 4))})
    )
    factors = {"rope_freqs.weight": np.full(32, np.nan)}
    assert "rope_freqs.weight" in refused(written(tmp_path, extra=factors))
    few = {"rope_freqs.weight": np.ones(7)}
    assert "rope_freqs.weight" in refused(written(tmp_path, extra=few))


@pytest.mark.parametrize("kind", [Quant.TQ1_0, Quant.MXFP4, Quant.TQ2_0])
def test_quantisations_that_are_not_read_are_named(tmp_path: Path, kind: Quant) -> None:
    assert f"quantised as {kind.name}" in refused(written(tmp_path, kind=kind))
    assert packed(np.zeros((1, 256), np.float32), kind).size


def test_an_unknown_quantisation_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    data = bytearray(path.read_bytes())
    name = b"token_embd.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8
    data[at : at + 4] = struct.pack("<I", 250)
    path.write_bytes(data)
    assert "unknown type 250" in refused(path)


DAMAGES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: b"", "0 bytes"),
    (lambda data: data[:20], "20 bytes"),
    (lambda data: b"GGML" + data[4:], "is no GGUF file, whatever its name says"),
    (lambda data: b"some text\n", "does not begin with GGUF"),
    (lambda data: data[:5000], "ends at byte 5000, within its header"),
    (lambda data: data[: len(data) // 2], "and the file at"),
    (lambda data: data[:-1], "and the file at"),
    (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "version 1"),
    (lambda data: data[:4] + struct.pack("<I", 99) + data[8:], "version 99"),
    (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "big-endian"),
    (lambda data: data[:8] + struct.pack("<Q", 2**63) + data[16:], f"{2**63} tensors"),
    (lambda data: data[:16] + struct.pack("<Q", 2**40) + data[24:], f"{2**40} fields"),
    (lambda data: data[:24] + struct.pack("<Q", 2**60) + data[32:], f"{2**60} bytes"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[said for _, said in DAMAGES])
def test_damages(tmp_path: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    path = written(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert said in refused(path)


def header_of(*fields: bytes, tensors: bytes = b"", count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, count, len(fields)) + b"".join(fields) + tensors


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


HOSTILE = [
    (header_of(text("a") + struct.pack("<IIQ", 9, 0, 2**61)), "items in its arrays"),
    (header_of(text("a") + struct.pack("<IIQ", 9, 8, 2**22)), "within its header"),
    (header_of(text("a") + struct.pack("<II", 9, 9)), "an array of arrays"),
    (header_of(text("a") + struct.pack("<I", 77)), "unknown type 77"),
    (header_of(*[text("a") + struct.pack("<II", 4, 1)] * 2), "'a' twice"),
    (header_of(text("a") + struct.pack("<IQ", 8, 2) + b"\xff\xff"), "not UTF-8"),
    (header_of(tensors=text("t") + struct.pack("<I", 9), count=1), "9 dimensions"),
    (
        header_of(tensors=text("t") + struct.pack("<IQIQ", 1, 0, 0, 0), count=1),
        "the shape (0,)",
    ),
    (
        header_of(tensors=text("t") + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0), count=1),
        "tensor 't' ends at byte",
    ),
    (
        header_of(tensors=text("t") + struct.pack("<IQIQ", 1, 4, 0, 2**63), count=1),
        "tensor 't' ends at byte",
    ),
    (
        header_of(tensors=(text("t") + struct.pack("<IQIQ", 1, 4, 0, 0)) * 2, count=2),
        "two tensors of one name",
    ),
    (
        header_of(
            tensors=b"".join(text(name) + struct.pack("<IQIQ", 1, 8, 0, 0) for name in "abc"),
            count=3,
        ),
        "overlap",
    ),
]


@pytest.mark.parametrize(("data", "said"), HOSTILE, ids=[said for _, said in HOSTILE])
def test_hostile_headers(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data + bytes(64))
    assert said in refused(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_damage_is_another_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "damaged.gguf"
    whole = tmp_path / "m.gguf"
    if not whole.exists():
        written(tmp_path)
    content = bytearray(whole.read_bytes()[:4000])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 3999))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with pytest.raises(UnsupportedModel):
        read_header(path)
