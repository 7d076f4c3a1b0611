"""Small random GGUF files, written with the `gguf` package as llama.cpp's own converter does."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGUFWriter, get_tensor_name_map
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType
from gguf.quants import quantize
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedModel

from tests.models import Kind, tiny_model

ROOT: Final = Path(__file__).parents[2]
ARCHS: Final = {
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
}
SPECIAL: Final = ("<|begin|>", "<|end|>", "<|turn|>", "<|pad|>")
TEMPLATE: Final = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

Quant = GGMLQuantizationType


@dataclass
class Vocab:
    """What stands under `tokenizer.ggml`."""

    tokens: list[str]
    types: list[int]
    fields: dict[str, Any] = field(default_factory=dict)


@cache
def _merged() -> tuple[list[str], list[str]]:
    """A byte-level vocabulary that merges across words, digits and marks, so that cuts show."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=700, initial_alphabet=sorted(alphabet), show_progress=False)
    text = (
        ROOT / "README.md"
    ).read_text() + " 2024 1234567 don't I'LL ÄÖ äöü 你好 \n\n\t 1,000.50" * 50
    tokenizer.train_from_iterator([text[i : i + 60] for i in range(0, len(text), 60)], trainer)
    state = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    return tokens, [" ".join(pair) for pair in state["merges"]]


def byte_level_vocab(pre: str | None = "smollm", **fields: Any) -> Vocab:
    """A vocabulary of model `gpt2`; `fields` are added or, if None, left out."""
    words, merges = _merged()
    tokens = [*SPECIAL, *words, "<tool>"]
    types = [_CONTROL] * len(SPECIAL) + [_NORMAL] * len(words) + [_USER]
    known: dict[str, Any] = {
        "model": "gpt2",
        "pre": pre,
        "merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "padding_token_id": 3,
        "add_bos_token": False,
    }
    return Vocab(tokens, types, known | fields)


def sentence_piece_vocab(**fields: Any) -> Vocab:
    """A vocabulary of model `llama`: pieces with scores, and tokens of bytes."""
    words = (ROOT / "README.md").read_text().split()
    pieces = dict.fromkeys(character for word in words for character in "▁" + word)
    for word in dict.fromkeys(words):
        for end in range(2, min(len(word), 8) + 1):
            pieces |= dict.fromkeys(("▁" + word[: end - 1], word[:end]))
    kept = list(pieces)[:1000]
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *kept,
        "<|turn|>",
    ]
    types = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * len(kept), _CONTROL]
    known: dict[str, Any] = {
        "model": "llama",
        "pre": "default",
        "scores": [0.0] * 259 + [-float(rank) for rank in range(len(kept))] + [0.0],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return Vocab(tokens, types, known | fields)


def model_for(vocab: Vocab, kind: Kind = "llama", **shape: Any) -> PreTrainedModel:
    """A random model whose rows are whole blocks of every quantisation."""
    figures: dict[str, Any] = {
        "vocab_size": len(vocab.tokens),
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
    }
    return tiny_model(kind, **{**figures, **shape})


def packed(numbers: np.ndarray[Any, Any], kind: Quant, seed: int = 0) -> np.ndarray[Any, Any]:
    """The numbers in a quantisation; random blocks where `gguf` has no quantiser."""
    try:
        return quantize(numbers, kind)
    except NotImplementedError:
        block, size = GGML_QUANT_SIZES[kind]
        rows, width = numbers.shape
        drawn = np.random.default_rng(seed).integers(0, 256, (rows, width // block, size), np.uint8)
        scales, value = _SCALES[kind]
        for at in scales:
            drawn[:, :, at : at + 2] = np.array([value], np.float16).view(np.uint8)
        return drawn.reshape(rows, -1)


# Where the half floats of a block lie, and what keeps its numbers near 0.2.
_SCALES: Final = {
    Quant.Q2_K: ((80, 82), 0.01),
    Quant.Q3_K: ((108,), 0.003),
    Quant.Q4_K: ((0, 2), 0.0005),
    Quant.Q5_K: ((0, 2), 0.0003),
    Quant.Q6_K: ((208,), 0.0001),
    Quant.IQ4_NL: ((0,), 0.003),
}


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    vocab: Vocab,
    *,
    kind: Quant = Quant.F32,
    fields: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray[Any, Any]] | None = None,
    but: Sequence[str] = (),
) -> Path:
    """Write a model as a GGUF file.

    Args:
        fields: added to those of the model, or left out if None.
        extra: tensors that the model does not have, in F32.
        but: tensors that are left out.
    """
    config = model.config
    arch = config.model_type
    writer = GGUFWriter(path, arch)
    known: dict[str, Any] = {
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": config.head_dim if arch != "qwen2" else 64,
        f"{arch}.attention.value_length": config.head_dim if arch != "qwen2" else 64,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{arch}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{arch}.rope.dimension_count": config.head_dim if arch != "qwen2" else 64,
        "tokenizer.chat_template": TEMPLATE,
        "tokenizer.ggml.tokens": vocab.tokens,
        "tokenizer.ggml.token_type": vocab.types,
        **{f"tokenizer.ggml.{key}": value for key, value in vocab.fields.items()},
    }
    for key, value in (known | dict(fields or {})).items():
        _add(writer, key, value)
    names = get_tensor_name_map(ARCHS[arch], config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        stem, _, last = name.rpartition(".")
        stored = f"{names.get_name(stem)}.{last}"
        if stored not in but:
            _add_tensor(writer, stored, _turned(name, parameter.detach().numpy(), config), kind)
    for stored, numbers in (extra or {}).items():
        _add_tensor(writer, stored, numbers, Quant.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        writer.kv_data[0].pop(key, None)
    elif key == "general.architecture":
        writer.kv_data[0][key].value = value
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_tensor(writer: GGUFWriter, name: str, numbers: np.ndarray[Any, Any], kind: Quant) -> None:
    kind = Quant.F32 if numbers.ndim == 1 else kind
    numbers = np.ascontiguousarray(numbers, np.float32)
    if kind == Quant.F32:
        writer.add_tensor(name, numbers)
    elif kind == Quant.F16:
        writer.add_tensor(name, numbers.astype(np.float16))
    else:
        writer.add_tensor(name, packed(numbers, kind), raw_dtype=kind)


def _turned(name: str, numbers: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    """llama.cpp rotates neighbouring rows of Llama's q and k together: its converter's order."""
    part = name.split(".")[-2]
    if config.model_type != "llama" or part not in ("q_proj", "k_proj"):
        return numbers
    heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
    halves = numbers.reshape(heads, 2, -1, *numbers.shape[1:])
    return halves.swapaxes(1, 2).reshape(numbers.shape)
