"""The weights of GGUF files: those of `gguf`'s own reader to the bit, with llama.cpp's logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, get_tensor_name_map
from gguf.quants import dequantize
from transformers import PreTrainedModel

from server.bases.base_files import load_base, load_stored
from server.bases.model import fingerprint_of
from tests.gguf_files.llama_cpp import LlamaCpp
from tests.gguf_files.making import ARCHS, Quant, byte_level_vocab, model_for, write_gguf
from tests.models import Kind

QUANTS = [
    *(Quant.F16, Quant.BF16, Quant.Q4_0, Quant.Q4_1, Quant.Q5_0, Quant.Q5_1, Quant.Q8_0),
    *(Quant.Q2_K, Quant.Q3_K, Quant.Q4_K, Quant.Q5_K, Quant.Q6_K, Quant.IQ4_NL),
]
PROMPT = [0, *range(40, 90)]


def logprobs(model: PreTrainedModel) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        logits = model.float()(torch.tensor([PROMPT])).logits[0, -1]
    found: np.ndarray[Any, Any] = logits.log_softmax(-1).numpy()
    return found


def theirs(path: Path) -> np.ndarray[Any, Any]:
    return LlamaCpp(path).logprobs(PROMPT, len(byte_level_vocab().tokens))


def assert_equal_logits(path: Path) -> PreTrainedModel:
    """Ours are llama.cpp's, which computes in float32 too."""
    model = load_stored(path)
    np.testing.assert_allclose(logprobs(model), theirs(path), atol=1e-3)
    return model


def assert_same_weights(path: Path, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Each parameter is what `gguf` dequantises, rounded once; q and k of Llama are turned."""
    stored = {
        tensor.name: torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
        for tensor in GGUFReader(path).tensors
    }
    config = model.config
    names = get_tensor_name_map(ARCHS[config.model_type], config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        stem, _, last = name.rpartition(".")
        expected = stored.pop(f"{names.get_name(stem)}.{last}").reshape(parameter.shape)
        part = stem.rpartition(".")[2]
        if config.model_type == "llama" and part in ("q_proj", "k_proj"):
            expected = expected.unflatten(0, (-1, config.head_dim // 2, 2)).transpose(1, 2)
        assert parameter.dtype == dtype
        assert torch.equal(parameter, expected.reshape(parameter.shape).to(dtype)), name
    assert not stored


@pytest.mark.parametrize("kind", QUANTS, ids=lambda kind: kind.name)
def test_each_quantisation_is_dequantised_to_the_bit(tmp_path: Path, kind: Quant) -> None:
    vocab = byte_level_vocab()
    path = write_gguf(tmp_path / "m.gguf", model_for(vocab), vocab, kind=kind)
    dtype = torch.float16 if kind == Quant.F16 else torch.bfloat16
    model = load_stored(path)
    assert_same_weights(path, model, dtype)
    # llama.cpp rounds what it multiplies with quantised weights to 8 bits.
    assert np.corrcoef(logprobs(model), theirs(path))[0, 1] > 0.98


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_float32_files_have_llama_cpps_logits(tmp_path: Path, kind: Kind, tied: bool) -> None:
    vocab = byte_level_vocab()
    model = model_for(vocab, kind, tie_word_embeddings=tied)
    path = write_gguf(tmp_path / "m.gguf", model, vocab)
    found = assert_equal_logits(path)
    assert_same_weights(path, found, torch.float32)
    assert fingerprint_of(found) == fingerprint_of(model)


SHAPES: dict[str, dict[str, Any]] = {
    "wide heads": {"head_dim": 128},
    "narrow heads": {"head_dim": 32},
    "as many keys as queries": {"num_key_value_heads": 4},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_llama(tmp_path: Path, name: str) -> None:
    vocab = byte_level_vocab()
    assert_equal_logits(write_gguf(tmp_path / "m.gguf", model_for(vocab, **SHAPES[name]), vocab))


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    "an old name": {"llama.rope.scale_linear": 4.0},
    "none": {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
    "base": {"llama.rope.freq_base": 5000.0},
    "no base": {"llama.rope.freq_base": None},
    "yarn": {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
        "llama.rope.scaling.attn_factor": 1.2,
    },
}


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_scaling(tmp_path: Path, name: str) -> None:
    vocab = byte_level_vocab()
    path = write_gguf(tmp_path / "m.gguf", model_for(vocab), vocab, fields=SCALINGS[name])
    assert_equal_logits(path)


def llama3_factors(most: float) -> np.ndarray[Any, Any]:
    """What Llama 3.1 divides frequencies by: its model card's rule for heads of 64."""
    lengths = 2 * np.pi * 10000.0 ** (np.arange(32) / 32)
    smooth = (8192 / lengths - 1.0) / 3.0
    between = 1 / ((1 - smooth) / most + smooth)
    return np.select([lengths < 2048, lengths > 8192], [1.0, most], between)


@pytest.mark.parametrize("most", [8.0, 32.0])
def test_rotary_factors_of_llama3(tmp_path: Path, most: float) -> None:
    vocab = byte_level_vocab()
    extra = {"rope_freqs.weight": llama3_factors(most)}
    path = write_gguf(tmp_path / "m.gguf", model_for(vocab), vocab, extra=extra)
    model = assert_equal_logits(path)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    assert load_base(path, device="cpu").max_context == 256


def test_rotary_factors_of_others(tmp_path: Path) -> None:
    vocab = byte_level_vocab()
    extra = {"rope_freqs.weight": np.linspace(1, 8, 32)}
    path = write_gguf(tmp_path / "m.gguf", model_for(vocab), vocab, extra=extra)
    assert assert_equal_logits(path).config.rope_parameters["rope_type"] == "longrope"


def test_matrices_in_several_dtypes_stay_exact(tmp_path: Path) -> None:
    vocab = byte_level_vocab()
    model = model_for(vocab)
    extra = {"output.weight": model.lm_head.weight.detach().numpy()}
    path = tmp_path / "m.gguf"
    write_gguf(path, model, vocab, kind=Quant.F16, but=("output.weight",), extra=extra)
    assert_same_weights(path, load_stored(path), torch.float32)
