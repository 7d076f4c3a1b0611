"""Ours, given out, and loaded by PEFT and transformers: the same logits."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from adapters_store.imported_bases import ImportedBases
from adapters_store.manifest import AdapterRef
from server.adapters.porting.service import PortingService
from server.bases.base_files import load_base
from server.bases.model import BaseModel
from server.errors import InvalidAdapter, InvalidRequest, UnsupportedModel
from tests.adapters.made import make_adapter
from tests.adapters.served import Served
from tests.models import Kind, tiny_model
from tests.porting.conftest import MakePlace, Place
from tests.porting.peft_side import (
    WEIGHTS,
    adapted,
    assert_same,
    loaded_logits,
    logits,
    lora,
    randlora,
    save,
    vera,
)

SQUARE = ["q_proj", "o_proj", "gate_proj", "down_proj"]  # min(in, out) is 48 in all of them


def publish(here: Place, **made: Any) -> AdapterRef:
    return here.served.publish(make_adapter(here.served.base, **made))


OURS: list[Any] = [
    pytest.param({"method": "vera"}, id="vera"),
    pytest.param({"method": "vera", "targets": ["k_proj", "down_proj"]}, id="vera-narrow"),
    pytest.param({"method": "vera", "scale": 1.7}, id="vera-scaled"),
    pytest.param({"method": "vera", "options": {"trained": "d"}}, id="vera-d"),
    pytest.param({"method": "vera", "options": {"trained": "b", "d_initial": "0.4"}}, id="vera-b"),
    pytest.param({"method": "asymmetric-lora", "scale": 2.0}, id="asymmetric-B"),
    pytest.param({"method": "asymmetric-lora", "options": {"trained": "A"}}, id="asymmetric-A"),
    pytest.param({"method": "lora", "scale": 2.0}, id="lora"),
    pytest.param({"method": "lora", "scale": 0.3}, id="lora-odd-scale"),
]


@pytest.mark.parametrize("form", ["peft", "peft-lora"])
@pytest.mark.parametrize("made", OURS)
def test_peft_answers_as_we_do(made: dict[str, Any], form: str, place: MakePlace) -> None:
    here = place()
    ref = publish(here, **made)
    folder = here.porting.export_adapter(ref, form)
    assert_same(loaded_logits("llama", folder), here.logits(ref))


@pytest.mark.parametrize("form", ["peft", "peft-lora"])
@pytest.mark.parametrize("method", ["vera", "asymmetric-lora", "lora"])
def test_conv1d(method: str, form: str, place: MakePlace) -> None:
    here = place("gpt2")
    ref = publish(here, method=method)
    assert_same(loaded_logits("gpt2", here.porting.export_adapter(ref, form)), here.logits(ref))


@pytest.mark.parametrize("options", [{}, {"sparsity": "3"}])
@pytest.mark.parametrize("scale", [1.0, 2.5, 0.3])
@pytest.mark.parametrize("rank", [7, 8])
def test_randlora_as_pefts(
    options: Mapping[str, str], scale: float, rank: int, place: MakePlace
) -> None:
    here = place()
    ref = publish(here, method="randlora", rank=rank, targets=SQUARE, scale=scale, options=options)
    folder = here.porting.export_adapter(ref, "peft")
    assert_same(loaded_logits("llama", folder), here.logits(ref))
    # 0.21 writes a copy of the matrices under every layer; one is enough, for any version.
    assert sum("randlora_B" in name for name in load_file(folder / WEIGHTS)) == 1


def test_randlora_whose_matrices_are_larger_than_any_layer_reads(place: MakePlace) -> None:
    """The largest in and out are of two layers, so that PEFT's B has blocks that none reads."""
    here = place(hidden_size=24, intermediate_size=80)
    ref = publish(here, method="randlora", rank=5, targets=["gate_proj", "down_proj"])
    folder = here.porting.export_adapter(ref, "peft")
    answer = loaded_logits("llama", folder, hidden_size=24, intermediate_size=80)
    assert_same(answer, here.logits(ref))


def test_randlora_with_different_numbers_of_blocks(place: MakePlace) -> None:
    here = place()
    ref = publish(here, method="randlora", rank=8, targets=["q_proj", "k_proj"])
    before = here.listing()
    with pytest.raises(InvalidRequest, match=r"3 in .*k_proj, 6 in .*q_proj.* as merged"):
        here.porting.export_adapter(ref, "peft")
    with pytest.raises(InvalidRequest, match=r"no product .*: export it as peft or merged"):
        here.porting.export_adapter(ref, "peft-lora")
    assert here.listing() == before


def test_vera_with_matrices_for_each_layer(place: MakePlace) -> None:
    here = place()
    ref = publish(here, method="vera", options={"basis": "per-layer"})
    with pytest.raises(InvalidRequest, match="peft-lora or merged"):
        here.porting.export_adapter(ref, "peft")
    folder = here.porting.export_adapter(ref, "peft-lora")
    assert_same(loaded_logits("llama", folder), here.logits(ref))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", vera()),
        ("gpt2", vera(save_projection=False)),
        ("llama", randlora()),
        ("gpt2", randlora(randlora_alpha=30)),
        ("llama", lora(use_rslora=True, rank_pattern={"q_proj": 2})),
        ("gpt2", lora()),
    ],
)
def test_what_came_in_goes_out(kind: Kind, config: Any, place: MakePlace, tmp_path: Path) -> None:
    here, peft = place(kind), adapted(kind, config)
    ref = here.import_adapter(save(peft, tmp_path / "out"))
    folder = here.porting.export_adapter(ref, "peft")
    assert_same(loaded_logits(kind, folder), logits(peft))
    again = here.import_adapter(folder, "again")
    first, second = (here.served.store.load(r)[:2] for r in (ref, again))
    assert first[0].basis_sha256 == second[0].basis_sha256
    assert_same(here.logits(again), here.logits(ref))


def test_a_lora_goes_out_as_it_came(place: MakePlace, tmp_path: Path) -> None:
    here = place()
    folder = save(adapted("llama", lora(target_modules=["q_proj", "up_proj"])), tmp_path / "out")
    given = here.porting.export_adapter(here.import_adapter(folder), "peft-lora")
    ours, theirs = load_file(given / WEIGHTS), load_file(folder / WEIGHTS)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_names_of_targets_are_short_where_they_mean_the_same(place: MakePlace) -> None:
    here = place()
    short = here.porting.export_adapter(publish(here, targets=["q_proj", "up_proj"]), "peft-lora")
    config = json.loads((short / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "up_proj"]
    one = publish(here, targets=["layers.1.self_attn.q_proj"])
    config = json.loads(
        (here.porting.export_adapter(one, "peft") / "adapter_config.json").read_text()
    )
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    assert_same(loaded_logits("llama", here.porting.export_adapter(one, "peft")), here.logits(one))


class TestMerged:
    @pytest.fixture(autouse=True)
    def _keep(self, tmp_path: Path, model_folder: Path) -> None:
        self.home, self.tokenizer = tmp_path / "home", model_folder

    def place(self, kind: Kind, stored: torch.dtype = torch.float32) -> Place:
        """A base from a folder, served in float32 whatever it is stored in."""
        source = self.home / "model"
        tiny_model(kind, dtype=stored).save_pretrained(source)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(self.tokenizer / name, source)
        base: BaseModel = load_base(source, device="cpu", dtype=torch.float32)
        served = Served(base, self.home / "adapters")
        porting = PortingService(
            base, served.store, str(source), self.home / "porting", max_rank=32
        )
        return Place(served, porting, self.home)

    def load(self, folder: Path) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        return cast(PreTrainedModel, model.eval())

    @pytest.mark.parametrize("kind", ["llama", "gpt2"])
    @pytest.mark.parametrize("method", ["vera", "randlora", "asymmetric-lora", "lora"])
    def test_transformers_answers_as_we_do(self, kind: Kind, method: str) -> None:
        here = self.place(kind)
        ref = publish(here, method=method)
        folder = here.porting.export_adapter(ref, "merged")
        assert_same(logits(self.load(folder)), here.logits(ref))
        assert AutoTokenizer.from_pretrained(folder).encode("ab") == AutoTokenizer.from_pretrained(
            self.tokenizer
        ).encode("ab")
        assert not [*folder.glob("*.bin")]

    def test_what_was_imported(self, tmp_path: Path) -> None:
        here, peft = self.place("llama"), adapted("llama", randlora())
        ref = here.import_adapter(save(peft, tmp_path / "out"))
        assert_same(logits(self.load(here.porting.export_adapter(ref, "merged"))), logits(peft))

    def test_the_dtype_is_that_of_the_files(self) -> None:
        here = self.place("llama", stored=torch.bfloat16)
        adapter = make_adapter(here.served.base, targets=["q_proj"])
        merged = self.load(here.porting.export_adapter(here.served.publish(adapter), "merged"))
        assert merged.dtype == torch.bfloat16
        stored = dict(self.load(self.home / "model").named_parameters())
        changed = {n for n, p in merged.named_parameters() if not torch.equal(p, stored[n])}
        assert changed == {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)}

    def test_files_that_changed_since(self) -> None:
        here = self.place("llama")
        ref = publish(here)
        tiny_model("llama", seed=5).save_pretrained(self.home / "model")
        before = here.listing()
        with pytest.raises(UnsupportedModel, match="no longer those that this server has loaded"):
            here.porting.export_adapter(ref, "merged")
        assert here.listing() == before


@pytest.mark.parametrize("default_prompt", [True, False])
def test_a_card_says_that_chats_have_no_default_prompt(
    default_prompt: bool, place: MakePlace
) -> None:
    here = place()
    made = make_adapter(here.served.base)
    ref = here.served.publish(
        replace(made, manifest=replace(made.manifest, default_prompt=default_prompt))
    )
    card = here.porting.export_adapter(ref, "peft") / "README.md"
    assert card.exists() is not default_prompt
    if not default_prompt:
        assert "trained on chats without a default system prompt" in card.read_text()


def test_an_adapter_of_another_base(place: MakePlace) -> None:
    here = place()
    made = make_adapter(here.served.base)
    manifest = replace(made.manifest, base_fingerprint="f" * 32)
    ref = here.served.store.publish("ann", "pet", manifest, made.tensors)
    with pytest.raises(InvalidAdapter, match="was trained on base"):
        here.porting.export_adapter(ref, "peft")


def test_imported_matrices_are_read_once_for_all_layers(
    place: MakePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place()
    ref = here.import_adapter(save(adapted("llama", randlora()), tmp_path / "out"))
    reads = []
    read = ImportedBases.read

    def counted(bases: ImportedBases, sha256: str) -> dict[str, Tensor]:
        reads.append(sha256)
        return read(bases, sha256)

    monkeypatch.setattr(ImportedBases, "read", counted)
    here.porting.export_adapter(ref, "peft")
    assert len(reads) == 1


def test_a_start_clears_what_was_killed_and_keeps_what_another_server_exports(
    place: MakePlace, tmp_path: Path
) -> None:
    here = place()
    folder = here.porting.export_adapter(publish(here), "peft")
    (here.root / "porting" / "left").mkdir()
    files = sorted(path.name for path in folder.iterdir())
    PortingService(here.served.base, here.served.store, "x", here.root / "porting", max_rank=32)
    assert [*(here.root / "porting").iterdir()] == [folder]
    assert sorted(path.name for path in folder.iterdir()) == files
