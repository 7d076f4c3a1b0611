"""The configuration of a model, as transformers reads it, from the header of a GGUF file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isclose, log, pi
from typing import Any, Final

from gguf.constants import MODEL_ARCH, GGMLQuantizationType

from server.bases.gguf_files.gguf_header import GgufHeader
from server.errors import UnsupportedModel

_MOST: Final = 2**24  # of any width or count


@dataclass(frozen=True)
class Family:
    """A family of models that is read.

    Attributes:
        model_type: transformers' name.
        interleaved: llama.cpp turns neighbouring entries of q and k; transformers turns halves.
    """

    arch: MODEL_ARCH
    model_type: str
    interleaved: bool = False


_FAMILIES: Final = {
    "llama": Family(MODEL_ARCH.LLAMA, "llama", interleaved=True),
    "qwen2": Family(MODEL_ARCH.QWEN2, "qwen2"),
    "qwen3": Family(MODEL_ARCH.QWEN3, "qwen3"),
}
_PLAIN: Final = {
    GGMLQuantizationType.F32: "float32",
    GGMLQuantizationType.F16: "float16",
    GGMLQuantizationType.BF16: "bfloat16",
}


def family_of(header: GgufHeader) -> Family:
    """The family of models that a file states. Raises UnsupportedModel if it is not read."""
    name = header.get("general.architecture", str)
    family = _FAMILIES.get(name)
    if family is None:
        raise UnsupportedModel(
            f"GGUF file {header.path.name!r} holds a model of architecture {name[:60]!r}: give one "
            f"of {', '.join(_FAMILIES)}, or the model's folder or hub id instead"
        )
    return family


def stored_dtype(header: GgufHeader) -> str:
    """The dtype that the weights are kept in: that of the matrices, and bfloat16 for quantised
    ones. Matrices in several dtypes are kept in float32, which holds each of them exactly.
    """
    kinds = {tensor.kind for tensor in header.tensors.values() if len(tensor.shape) > 1}
    if not kinds <= _PLAIN.keys():
        return "bfloat16"
    return _PLAIN[kinds.pop()] if len(kinds) == 1 else "float32"


def config_of(header: GgufHeader, factors: Sequence[float] | None) -> dict[str, Any]:
    """The content of config.json.

    Args:
        factors: what the file divides each rotary frequency by, if it says so.

    Raises:
        UnsupportedModel: a field is missing or wrong, or asks for what is not read.
    """
    family, arch = family_of(header), header.get("general.architecture", str)

    def figure(key: str, default: int | None = None) -> int:
        return _figure(header, f"{arch}.{key}", default)

    if figure("expert_count", 0):
        raise _unread(header, f"{arch}.expert_count", "a mixture of experts")
    heads, width = figure("attention.head_count"), figure("embedding_length")
    head_dim = figure("attention.key_length", width // max(heads, 1))
    if figure("attention.value_length", head_dim) != head_dim:
        raise _unread(header, f"{arch}.attention.value_length", "values of another width than keys")
    if figure("rope.dimension_count", head_dim) != head_dim:
        raise _unread(header, f"{arch}.rope.dimension_count", "heads that are rotated in part")
    if head_dim % 2:
        raise _unread(header, f"{arch}.attention.key_length", "heads of an odd width")
    if factors is not None and len(factors) != head_dim // 2:
        raise _unread(header, "rope_freqs.weight", f"{len(factors)} factors for {head_dim} entries")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise UnsupportedModel(
            f"GGUF file {header.path.name!r} has no token_embd.weight: give a file of a whole model"
        )
    config: dict[str, Any] = {
        "model_type": family.model_type,
        "dtype": stored_dtype(header),
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": figure("feed_forward_length"),
        "num_hidden_layers": figure("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": figure("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": figure("context_length"),
        "rms_norm_eps": header.get(f"{arch}.attention.layer_norm_rms_epsilon", float),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    if family.model_type == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    _check_window(header, arch)
    config["rope_parameters"] = _rope(header, arch, figure, factors)
    return config


def _check_window(header: GgufHeader, arch: str) -> None:
    key = f"{arch}.attention.sliding_window"
    if header.fields.get(key):
        raise _unread(header, key, "a sliding window")


def _figure(header: GgufHeader, key: str, default: int | None) -> int:
    listed = header.fields.get(key)
    if isinstance(listed, list) and len(set(listed)) != 1:
        raise _unread(header, key, "layers of several shapes")
    value = listed[0] if isinstance(listed, list) else header.get(key, int, default)
    if type(value) is not int or not 0 <= value <= _MOST or (value == 0 and default != 0):
        raise UnsupportedModel(
            f"GGUF file {header.path.name!r} has {key}={value!r}: give a file with a whole number "
            f"from 1 to {_MOST} there"
        )
    return value


def _rope(
    header: GgufHeader, arch: str, figure: Callable[..., int], factors: Sequence[float] | None
) -> dict[str, Any]:
    """How positions turn q and k, in transformers' words."""
    theta = header.get(f"{arch}.rope.freq_base", float, 10000.0)
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    kind = header.get(f"{arch}.rope.scaling.type", str, "")
    legacy = header.get(f"{arch}.rope.scale_linear", float, 0.0)
    factor = header.get(f"{arch}.rope.scaling.factor", float, legacy or 1.0)
    context = figure("context_length")
    if factors is not None and (kind not in ("", "none") or factor != 1.0):
        raise _unread(header, "rope_freqs.weight", "rotary factors beside rotary scaling")
    if factors is not None:
        llama3 = _llama3(theta, factors)
        if llama3:
            return plain | llama3
        # Long rope divides by any factors, here by the same ones at every length.
        return plain | {
            "rope_type": "longrope",
            "short_factor": list(factors),
            "long_factor": list(factors),
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": context,
        }
    if kind == "none" or factor == 1.0 or factor == 0.0:
        return plain
    if kind in ("", "linear"):
        return plain | {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        own = header.get(f"{arch}.rope.scaling.attn_factor", float, 1.0)
        original = figure("rope.scaling.original_context_length", context)
        return plain | {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "attention_factor": own * (1.0 + 0.1 * log(factor)),
            "beta_fast": header.get(f"{arch}.rope.scaling.yarn_beta_fast", float, 32.0),
            "beta_slow": header.get(f"{arch}.rope.scaling.yarn_beta_slow", float, 1.0),
        }
    raise _unread(header, f"{arch}.rope.scaling.type", f"rotary scaling of type {kind[:60]!r}")


def _llama3(theta: float, factors: Sequence[float]) -> dict[str, Any] | None:
    """Llama 3.1's words for the factors, if its rule gives them."""
    most = max(factors)
    words = {
        "rope_type": "llama3",
        "factor": most,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for index, factor in enumerate(factors):
        turns = 8192 / (2 * pi * theta ** (index / len(factors)))  # within the original context
        share = min(max((turns - 1.0) / 3.0, 0.0), 1.0)
        if not isclose(factor, 1.0 / ((1.0 - share) / most + share), rel_tol=1e-4):
            return None
    return words


def _unread(header: GgufHeader, key: str, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"GGUF file {header.path.name!r} has {what} ({key}), which is not read from GGUF: give the "
        "model's folder or hub id instead"
    )
