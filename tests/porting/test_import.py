"""PEFT trains and saves, we import and serve: the same logits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor

from adapters_store.peft.generator import ERAS
from server.adapters.methods.basis_id import BasisId
from tests.adapters.made import make_adapter
from tests.models import Kind, tiny_model
from tests.porting.conftest import MakePlace
from tests.porting.peft_side import (
    ERA,
    TOKENS,
    adapted,
    assert_same,
    change,
    configure,
    loaded_logits,
    logits,
    lora,
    quiet,
    randlora,
    save,
    vera,
)

ATTENTION = ["q_proj", "v_proj"]  # of different widths: keys and values are shared by two heads
NARROW = ["k_proj", "down_proj"]

CHECKPOINTS = [
    pytest.param("llama", vera(), id="vera"),
    pytest.param("llama", vera(save_projection=False, projection_prng_key=9), id="vera-seed"),
    pytest.param("llama", vera(target_modules=NARROW, save_projection=False), id="vera-narrow"),
    pytest.param(
        "llama", vera(layers_to_transform=[1], layers_pattern="layers"), id="vera-1-layer"
    ),
    pytest.param("gpt2", vera(save_projection=False), id="vera-conv1d"),
    pytest.param("llama", randlora(), id="randlora"),
    pytest.param("llama", randlora(r=8, target_modules=ATTENTION), id="randlora-attention"),
    pytest.param("llama", randlora(sparse=True), id="randlora-sparse"),
    pytest.param("llama", randlora(sparse=True, save_projection=False), id="randlora-sparse-seed"),
    pytest.param(
        "llama", randlora(very_sparse=True, save_projection=False), id="randlora-very-sparse-seed"
    ),
    pytest.param("gpt2", randlora(randlora_alpha=33), id="randlora-conv1d"),
    pytest.param("llama", lora(), id="lora"),
    pytest.param("gpt2", lora(fan_in_fan_out=True), id="lora-conv1d"),
    pytest.param("llama", lora(use_rslora=True), id="rslora"),
    pytest.param(
        "llama",
        lora(
            rank_pattern={"q_proj": 9, r"layers\.1\.mlp\.up_proj": 2},
            alpha_pattern={"q_proj": 3, "model.layers.0.mlp.down_proj": 40},
        ),
        id="lora-patterns",
    ),
    pytest.param(
        "llama",
        lora(use_rslora=True, rank_pattern={"^model.layers.0.*o_proj": 3}),
        id="rs-patterns",
    ),
    pytest.param("llama", lora(alpha_pattern={"q_proj": 0, "up_proj": 3}), id="lora-inert-linear"),
    pytest.param(
        "llama",
        lora(use_rslora=True, alpha_pattern={r"(self_attn\.)?(q|k)_proj": 9, "x" * 200: 1}),
        id="lora-repeated-patterns",
    ),
    pytest.param("llama", lora(target_modules=r".*\.1\..*(q|up)_proj"), id="lora-regex-targets"),
]


@pytest.mark.parametrize(("kind", "config"), CHECKPOINTS)
def test_served_as_peft_serves_it(
    kind: Kind, config: PeftConfig, place: MakePlace, tmp_path: Path
) -> None:
    here, peft = place(kind), adapted(kind, config)
    want = logits(peft)
    ref = here.import_adapter(save(peft, tmp_path / "out"))
    assert_same(here.logits(ref), want)
    with peft.disable_adapter():
        assert (want - logits(peft)).abs().mean() > 0.05


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_randlora_without_its_matrices(
    half: str, place: MakePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft.tuners.randlora.model.is_bf16_available", lambda: half == "bfloat16")
    here = place()
    peft = adapted("llama", randlora(save_projection=False, projection_prng_key=3))
    folder = save(peft, tmp_path / "out")
    ref = here.import_adapter(folder, torch_era=ERA, half_dtype=half)
    assert_same(here.logits(ref), logits(peft))
    (wrong,) = {*ERAS} - {ERA}
    other = here.import_adapter(folder, torch_era=wrong, half_dtype=half)
    assert (here.logits(other) - logits(peft)).abs().mean() > 0.05
    told = here.served.store.open(ref).manifest.provenance["basis"]
    assert told == f"PEFT's generator: key 3, float32, torch {ERA}, {half}"


@pytest.mark.parametrize(
    ("config", "matrices"),
    [
        (vera(save_projection=False), ("vera_A", "vera_B")),
        (randlora(save_projection=False, sparse=True), ("randlora_A", "randlora_B")),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matrices_are_rounded_as_on_a_base_of_that_dtype(
    config: PeftConfig,
    matrices: tuple[str, str],
    dtype: torch.dtype,
    place: MakePlace,
    tmp_path: Path,
) -> None:
    here, peft = place(), adapted("llama", config, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    ref = here.import_adapter(save(peft, tmp_path / "out"), base_dtype=name)
    kept = here.served.store.imported_bases.read(here.served.store.open(ref).manifest.basis_sha256)
    a, b = (getattr(peft.base_model, matrix)["default"].float() for matrix in matrices)
    assert torch.equal(kept["a"], a.reshape(kept["a"].shape))
    assert torch.equal(kept["b"], b.reshape(kept["b"].shape))


# What the configs and files of other trainers have beyond PEFT's own.
MS_SWIFT: dict[str, object] = {
    "lora_dtype": None,
    "lorap_lr_ratio": 16.0,
    "lorap_emb_lr": 1e-06,
    "model_type": "llama",
    "modules_to_save": [],
    "use_rslora": False,
    "task_type": "CAUSAL_LM",
    "init_lora_weights": None,
}
UNSLOTH: dict[str, object] = {
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
    "target_modules": "(?:.*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)",
    "use_rslora": None,
    "fan_in_fan_out": None,
    "alora_invocation_tokens": None,
    "ensure_weight_tying": False,
    "peft_version": "0.18.0",
    "qalora_group_size": 16,
}
TORCHTUNE: dict[str, object] = {
    "r": 5,
    "lora_alpha": 12.0,
    "target_modules": ["q_proj"],
    "peft_type": "LORA",
}
RENAMED: dict[str, Callable[[str], str]] = {
    "as it is": lambda name: name,
    "adapter's name": lambda name: name.replace(".weight", ".default.weight"),
    "no prefix": lambda name: name.removeprefix("base_model.model."),
    "compiled": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "parallel": lambda name: f"module.{name}",
    "sharded": lambda name: name.replace("self_attn", "_fsdp_wrapped_module.self_attn"),
}


@pytest.mark.parametrize("fields", [MS_SWIFT, UNSLOTH, TORCHTUNE])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_other_trainers_save(
    fields: dict[str, Any], dtype: torch.dtype, place: MakePlace, tmp_path: Path
) -> None:
    here, peft = place(), adapted("llama", lora())
    folder = save(peft, tmp_path / "out")
    change(folder, lambda it: it.update({name: tensor.to(dtype) for name, tensor in it.items()}))
    if fields is TORCHTUNE:  # it writes no others
        (folder / "adapter_config.json").write_text(json.dumps(TORCHTUNE))
    else:
        configure(folder, **fields)
    # PEFT reads the same tensors with its own config.
    theirs = save(peft, tmp_path / "theirs")
    shutil.copy(folder / "adapter_model.safetensors", theirs)
    want = loaded_logits("llama", theirs)
    assert_same(here.logits(here.import_adapter(folder)), want)


@pytest.mark.parametrize("how", RENAMED)
def test_tensors_that_other_programs_name(how: str, place: MakePlace, tmp_path: Path) -> None:
    here, peft = place(), adapted("llama", lora())
    want, folder = logits(peft), save(peft, tmp_path / "out")
    change(folder, lambda it: it.update({RENAMED[how](name): it.pop(name) for name in list(it)}))
    assert_same(here.logits(here.import_adapter(folder)), want)


def test_an_alpha_of_zero_changes_nothing(place: MakePlace, tmp_path: Path) -> None:
    here, peft = place(), adapted("llama", lora(lora_alpha=0))
    ref = here.import_adapter(save(peft, tmp_path / "out"))
    with peft.disable_adapter():
        assert_same(here.logits(ref), logits(peft))


def test_half_precision_tensors_are_widened(place: MakePlace, tmp_path: Path) -> None:
    here, folder = place(), save(adapted("llama", lora()), tmp_path / "out")

    def halve(tensors: dict[str, Tensor]) -> None:
        for place, (name, tensor) in enumerate(tensors.items()):
            tensors[name] = tensor.to([torch.bfloat16, torch.float16, torch.float32][place % 3])

    change(folder, halve)
    from_halves = here.logits(here.import_adapter(folder, "halves"))
    change(folder, lambda tensors: tensors.update({k: v.float() for k, v in tensors.items()}))
    assert torch.equal(from_halves, here.logits(here.import_adapter(folder, "floats")))


@pytest.mark.parametrize("config", [vera, randlora])
def test_one_basis_is_kept_and_resident_once(config: Any, place: MakePlace, tmp_path: Path) -> None:
    here = place()
    first = here.import_adapter(save(adapted("llama", config(), draw=1), tmp_path / "1"), "first")
    second = here.import_adapter(save(adapted("llama", config(), draw=2), tmp_path / "2"), "second")
    manifests = [here.served.store.open(ref).manifest for ref in (first, second)]
    assert BasisId.of(manifests[0]) == BasisId.of(manifests[1])
    assert here.served.store.imported_bases.hashes() == {manifests[0].basis_sha256}
    other = config(target_modules=["v_proj"])
    third = here.import_adapter(save(adapted("llama", other), tmp_path / "3"), "third")
    assert BasisId.of(here.served.store.open(third).manifest) != BasisId.of(manifests[0])
    assert len(here.served.store.imported_bases.hashes()) == 2


def test_a_vera_with_and_without_its_matrices_shares_them(place: MakePlace, tmp_path: Path) -> None:
    here = place()
    for saved in (True, False):
        peft = adapted("llama", vera(save_projection=saved))
        here.import_adapter(save(peft, tmp_path / str(saved)), str(saved))
    assert len(here.served.store.imported_bases.hashes()) == 1


def test_what_the_manifest_tells(place: MakePlace, tmp_path: Path) -> None:
    here = place()
    folder = save(adapted("llama", lora(target_modules=ATTENTION)), tmp_path / "out")
    first, second = here.import_adapter(folder), here.import_adapter(folder)
    assert [str(first), str(second)] == ["pet@1", "pet@2"]
    manifest = here.served.store.open(second).manifest
    assert (manifest.method, manifest.rank, manifest.scale) == ("lora", 5, 12 / 5)
    assert (manifest.basis_spec, manifest.basis_sha256, manifest.seed) == ("none", "", 0)
    assert manifest.base_fingerprint == here.served.base.fingerprint
    assert len(manifest.targets) == 4
    assert manifest.provenance["imported_from"] == "PEFT LORA"
    assert manifest.provenance["peft_version"]


def test_a_config_may_hold_any_character(place: MakePlace, tmp_path: Path) -> None:
    here, folder = place(), save(adapted("llama", lora()), tmp_path / "out")
    configure(folder, base_model_name_or_path="org/\ud800\x1b[31mname" + "x" * 1000)
    manifest = here.served.store.open(here.import_adapter(folder)).manifest
    assert manifest.provenance["peft_base"] == "org/\ufffd\u241b[31mname" + "x" * 186


def test_all_kinds_in_one_batch(place: MakePlace, tmp_path: Path) -> None:
    """Two VeRAs over matrices of their own, a RandLoRA and a LoRA of PEFT's, ours, and the base."""
    here = place()
    ours = here.served.publish(make_adapter(here.served.base, method="vera"), "ours")
    configs = [vera(), vera(target_modules=NARROW), randlora(target_modules=ATTENTION), lora()]
    refs, wants = [ours], [here.logits(ours)]
    for index, config in enumerate(configs):
        peft = adapted("llama", config, draw=index)
        refs.append(here.import_adapter(save(peft, tmp_path / str(index)), f"pet-{index}"))
        wants.append(logits(peft))
    slots = [here.served.acquire(ref) for ref in refs]
    answers = here.served.logits(TOKENS.expand(len(slots) + 1, -1), [*slots, 0])
    for answer, want in zip(answers, [*wants, logits(tiny_model("llama"))], strict=True):
        assert_same(answer, want)


def test_a_converted_pissa(place: MakePlace, tmp_path: Path) -> None:
    """PiSSA changes the base; PEFT's converted form is a LoRA of twice the rank on the original."""
    here, peft = place(), adapted("llama", lora(init_lora_weights="pissa"))
    with quiet():
        config = lora(init_lora_weights="pissa")
        start = get_peft_model(tiny_model("llama"), config)
        config.init_lora_weights = True
        start.save_pretrained(str(tmp_path / "start"))
        peft.save_pretrained(
            str(tmp_path / "out"), path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
    want = logits(peft)
    ref = here.import_adapter(tmp_path / "out")
    assert here.served.store.open(ref).manifest.rank == 10
    assert_same(here.logits(ref), want)
