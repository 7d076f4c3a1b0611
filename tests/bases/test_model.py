"""Loading a base model: what it tells of itself, its fingerprint, and what is refused."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, PreTrainedModel, T5Config
from transformers.pytorch_utils import Conv1D

from server.bases.base_files import load_base, load_stored
from server.bases.cpu_speed import CpuSpeed, cpu_speed
from server.bases.model import BaseModel, device_works, fingerprint_of
from server.errors import UnsupportedModel
from tests.models import EOS, KINDS, VOCAB, Kind, tiny_base, tiny_gemma_with_images, tiny_model

LINEARS: dict[Kind, int] = {
    "llama": 7,
    "qwen2": 7,
    "qwen3": 7,
    "mistral": 7,
    "gemma3_text": 7,
    "gpt2": 4,
    "phi": 6,
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a tiny Llama."""
    tiny_model("llama").save_pretrained(tmp_path)
    return tmp_path


def _edit_config(folder: Path, file: str = "config.json", **fields: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _nudged(model: PreTrainedModel, name: str) -> PreTrainedModel:
    with torch.no_grad():
        model.get_parameter(name).mul_(1.01)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_names_every_linear_of_the_decoder_and_no_other(kind: Kind) -> None:
    base = tiny_base(kind)
    assert len(base.targets) == LINEARS[kind] * base.num_layers
    assert not any("head" in path or "embed" in path for path in base.targets)
    for path, target in base.targets.items():
        assert base.model.get_submodule(path) is target.module
        probe = torch.zeros(1, target.in_features)
        assert target.module(probe).shape == (1, target.out_features)


def test_a_model_with_an_image_tower_is_its_decoder(tmp_path: Path) -> None:
    tiny_gemma_with_images().save_pretrained(tmp_path)
    base = load_base(tmp_path, device="cpu")
    assert (base.config.model_type, base.num_layers, base.vocab_size) == ("gemma3_text", 2, VOCAB)
    assert len(base.targets) == 14
    assert not any("vision" in path for path in base.targets)


def test_gpt2_targets_are_conv1d() -> None:
    assert all(isinstance(t.module, Conv1D) for t in tiny_base("gpt2").targets.values())


@pytest.mark.parametrize(
    ("kind", "kv_heads", "head_dim"),
    [("llama", 2, 12), ("qwen3", 2, 16), ("gpt2", 4, 12), ("phi", 2, 12)],
)
def test_tells_the_shape_of_its_cache(kind: Kind, kv_heads: int, head_dim: int) -> None:
    base = tiny_base(kind)
    assert (base.num_layers, base.num_kv_heads, base.head_dim) == (2, kv_heads, head_dim)
    assert (base.max_context, base.vocab_size, base.eos_token_ids) == (256, VOCAB, frozenset({EOS}))


@pytest.mark.parametrize(
    ("config", "generation", "found"),
    [
        (2, 7, {2, 7}),
        ([2, 3], [3, 7], {2, 3, 7}),
        (2, None, {2}),
        (None, [7], {7}),
        (None, None, set()),
        ([], [], set()),
        (0, VOCAB - 1, {0, VOCAB - 1}),
    ],
)
def test_end_tokens_are_those_of_both_files(
    saved: Path, config: object, generation: object, found: set[int]
) -> None:
    _edit_config(saved, eos_token_id=config)
    _edit_config(saved, "generation_config.json", eos_token_id=generation)
    assert load_base(saved, device="cpu").eos_token_ids == found


def test_an_end_token_that_no_file_names_is_none(saved: Path) -> None:
    """transformers gives every Llama token 2, whatever its vocabulary has there."""
    path = saved / "config.json"
    fields = json.loads(path.read_text())
    del fields["eos_token_id"]
    path.write_text(json.dumps(fields))
    _edit_config(saved, "generation_config.json", eos_token_id=None)
    assert load_base(saved, device="cpu").eos_token_ids == set()
    (saved / "generation_config.json").unlink()
    assert load_base(saved, device="cpu").eos_token_ids == set()


@pytest.mark.parametrize(
    "named", ["</s>", "2", True, 2.0, [2, None], [2, "7"], [[2]], {"a": 1}, VOCAB, -1, [2, VOCAB]]
)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_token_that_is_no_token_is_refused(saved: Path, file: str, named: object) -> None:
    _edit_config(saved, file, eos_token_id=named)
    with pytest.raises(UnsupportedModel, match="eos_token_id") as caught:
        load_base(saved, device="cpu")
    assert repr(named) in str(caught.value)


def test_is_frozen_and_in_evaluation_mode() -> None:
    base = BaseModel.of(tiny_model("llama").train(), "tiny")
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_loads_a_folder_and_answers_like_transformers(saved: Path) -> None:
    base = load_base(saved, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    tokens = torch.arange(3, 40).unsqueeze(0)
    with torch.inference_mode():
        assert torch.equal(base.model(tokens).logits, plain(tokens).logits)
    assert (base.name, base.dtype, base.device.type) == (saved.name, torch.float32, "cpu")


@pytest.mark.parametrize(
    ("stored", "decoding", "training", "served"),
    [
        (torch.bfloat16, 1.3, 1.3, torch.bfloat16),
        (torch.bfloat16, 1.2, 3.0, torch.float32),
        (torch.bfloat16, 3.0, 1.2, torch.float32),
        (torch.float32, 3.0, 3.0, torch.float32),
        (torch.float16, 3.0, 3.0, torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu_is_what_the_measurement_says_of_files_in_bfloat16(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: torch.dtype,
    decoding: float,
    training: float,
    served: torch.dtype,
) -> None:
    tiny_model("llama", dtype=stored).save_pretrained(tmp_path)
    measured = CpuSpeed(decoding, training)
    monkeypatch.setattr("server.bases.base_files.cpu_speed", lambda model: measured)
    assert load_base(tmp_path, device="cpu").dtype == served
    assert load_base(tmp_path, device="cpu", dtype=torch.float16).dtype == torch.float16


def test_the_measurement_follows_the_time_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only counts what the products would cost: bfloat16 takes a quarter here."""
    clock = 0.0

    def linear(x: torch.Tensor, weight: torch.Tensor) -> None:
        nonlocal clock
        clock += x.shape[0] * weight.numel() / (4 if x.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr("server.bases.cpu_speed.functional.linear", linear)
    monkeypatch.setattr("server.bases.cpu_speed.time.thread_time", lambda: clock)
    threads = torch.get_num_threads()
    assert cpu_speed(tiny_model("llama")) == CpuSpeed(4.0, 4.0)
    assert torch.get_num_threads() == threads


def test_the_measurement_takes_a_fraction_of_a_second() -> None:
    started = time.process_time()
    speed = cpu_speed(tiny_model("gpt2"))
    assert time.process_time() - started < 1
    assert speed.decoding > 0 and speed.training > 0


def test_rotary_frequencies_stay_float32_in_half_precision(saved: Path) -> None:
    half = load_base(saved, device="cpu", dtype=torch.bfloat16).model
    buffers = {name: value for name, value in half.named_buffers() if "inv_freq" in name}
    assert buffers
    assert {value.dtype for value in buffers.values()} == {torch.float32}


def test_sets_the_attention_function_asked_for(saved: Path) -> None:
    base = load_base(saved, device="cpu", attention="eager")
    assert base.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fingerprint_does_not_depend_on_the_dtype_served(saved: Path, dtype: torch.dtype) -> None:
    served = load_base(saved, device="cpu", dtype=dtype)
    assert served.fingerprint == fingerprint_of(tiny_model("llama"))


def test_fingerprint_of_a_bfloat16_copy_is_the_same() -> None:
    copy = tiny_model("qwen3", dtype=torch.bfloat16)
    assert fingerprint_of(copy) == fingerprint_of(tiny_model("qwen3"))


def test_fingerprints_tell_weights_shapes_and_kinds_apart() -> None:
    models = [tiny_model(kind) for kind in KINDS]
    models += [tiny_model("llama", seed=1), tiny_model("llama", vocab_size=VOCAB - 1)]
    models += [_nudged(tiny_model("llama"), "model.layers.1.mlp.up_proj.weight")]
    models += [_nudged(tiny_model("llama"), "model.norm.weight")]
    assert len({fingerprint_of(model) for model in models}) == len(models)


@pytest.mark.gpu
def test_fingerprint_does_not_depend_on_the_device(saved: Path) -> None:
    here, there = load_base(saved, device="cpu"), load_base(saved, device="cuda")
    assert here.fingerprint == there.fingerprint
    assert fingerprint_of(there.model) == here.fingerprint


@pytest.mark.parametrize("source", ["/no/such/folder", "./nowhere", "not an id!", "a/b/c"])
def test_a_missing_model_is_named(source: str) -> None:
    with pytest.raises(UnsupportedModel, match="is not there") as refusal:
        load_base(source, device="cpu")
    assert source in str(refusal.value)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no config\.json"):
        load_base(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_type": "martian"}, "model type `martian`"),
        (
            {"model_type": "martian", "auto_map": {"AutoConfig": "c.C"}},
            "trust_remote_code",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(
    saved: Path, fields: dict[str, Any], reason: str
) -> None:
    _edit_config(saved, **fields)
    with pytest.raises(UnsupportedModel, match=reason) as refusal:
        load_base(saved, device="cpu")
    assert "\n" not in str(refusal.value)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="encoder-decoder"):
        load_base(tmp_path, device="cpu")


@pytest.mark.filterwarnings("ignore:.*is_decoder")
def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="not causal"):
        load_base(tmp_path, device="cpu")


def test_a_truncated_file_is_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UnsupportedModel, match="cannot load"):
        load_base(saved, device="cpu")


def test_a_checkpoint_that_lacks_weights_is_refused(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match="up_proj"):
        load_base(saved, device="cpu")


def test_weights_that_overflow_are_refused(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["model.norm.weight"] = torch.full((48,), 1e9)
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match="not finite"):
        load_base(saved, device="cpu", dtype=torch.float16)


@pytest.mark.parametrize("broken", [False, True])
def test_a_device_works_until_it_cannot_be_waited_for(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream:
        def synchronize(self) -> None:
            if broken:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    assert device_works(torch.device("cuda")) is not broken
    assert device_works(torch.device("cpu"))


def test_one_model_is_built_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once can leave torch's default dtype, which all threads share, at bfloat16."""
    tiny_model("llama").bfloat16().save_pretrained(tmp_path)
    build, building, most = AutoModelForCausalLM.from_pretrained, 0, 0

    def watched(*args: Any, **options: Any) -> Any:
        nonlocal building, most
        building += 1
        most = max(most, building)
        time.sleep(0.05)
        try:
            return build(*args, **options)
        finally:
            building -= 1

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    with ThreadPoolExecutor(4) as threads:
        assert [one.dtype for one in threads.map(load_stored, [tmp_path] * 4)] == [
            torch.bfloat16
        ] * 4
    assert most == 1
    assert torch.get_default_dtype() is torch.float32
