"""What cannot be taken in is refused with its tensor or field named, and leaves nothing behind."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig
from torch import Tensor

from adapters_store.store_errors import InvalidCheckpoint, InvalidName, StoreError
from server.adapters.methods.checked_adapter import CheckedAdapter
from server.adapters.methods.peft.outgoing import PeftCheckpoint, as_lora
from server.adapters.porting import service
from server.errors import InvalidRequest, QueueFull, VerandahError
from tests.api.running import eventually
from tests.porting.conftest import MakePlace, Place
from tests.porting.peft_side import adapted, change, configure, lora, randlora, save, vera

LAYER = "base_model.model.model.layers.0."
Q_D, Q_B = (f"{LAYER}self_attn.q_proj.vera_lambda_{x}" for x in "db")
Q_LAMBDA, Q_GAMMA = (f"{LAYER}self_attn.q_proj.randlora_{x}" for x in ("lambda", "gamma"))
Q_LORA_A, Q_LORA_B = (f"{LAYER}self_attn.q_proj.lora_{x}.weight" for x in "AB")

Edit = Callable[[dict[str, Tensor]], Any]


def refused(here: Place, folder: Path, said: str, **told: str) -> None:
    """Assert that nothing changed on the disk, and that nothing was in the store before."""
    before = here.listing()
    with pytest.raises((StoreError, VerandahError), match=said):
        here.import_adapter(folder, **told)
    assert here.listing() == before
    assert here.served.store.owners() == []


def without(name: str) -> Edit:
    return lambda tensors: tensors.pop(name)


def first(name: str, value: float) -> Edit:
    return lambda tensors: tensors[name].view(-1)[:1].fill_(value)


def cut(name: str) -> Edit:
    return lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()})


def also(name: str, *shape: int) -> Edit:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


def renamed(old: str, new: str) -> Edit:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
    ("config", "edit", "said"),
    [
        (vera(), without(Q_D), f"tensor '{Q_D}' is missing"),
        (vera(), without("base_model.vera_A"), "tensor 'base_model.vera_A' is missing"),
        (vera(), without("base_model.vera_B"), "tensor 'base_model.vera_B' is missing"),
        (vera(), cut(Q_D), rf"'{Q_D}' has shape \[5\], not the \[6\]"),
        (vera(), cut(Q_B), rf"'{Q_B}' has shape \[47\], not the \[48\] .*linear \[48, 48\]"),
        (
            vera(),
            cut("base_model.vera_A"),
            r"'base_model.vera_A' has shape \[5, 80\], not \[6, 80\]",
        ),
        (vera(), first(Q_B, float("nan")), f"'{Q_B}' holds a value that is not finite"),
        (
            vera(),
            first("base_model.vera_B", float("inf")),
            "'base_model.vera_B' holds a value that",
        ),
        (
            vera(),
            also(f"{LAYER}self_attn.q_proj.bias", 48),
            r"'.*q_proj\.bias' cannot be",
        ),
        (vera(), also("base_model.model.lm_head.vera_lambda_b", 300), "'lm_head'.*embeddings and"),
        (vera(), also("stray", 1), "'stray' cannot be served"),
        (vera(), renamed(Q_D, Q_D.replace("q_proj", "x_proj")), "x_proj' is not a linear"),
        (vera(), lambda tensors: [tensors.pop(k) for k in list(tensors)[:-2]], "empty|missing"),
        (randlora(), without(Q_LAMBDA), f"tensor '{Q_LAMBDA}' is missing"),
        (randlora(), cut(Q_GAMMA), rf"'{Q_GAMMA}' has shape \[6, 48\], not the \[7, 48\]"),
        (randlora(), first(Q_GAMMA, float("-inf")), f"'{Q_GAMMA}' holds a value that is not"),
        (
            randlora(),
            first(f"{LAYER}mlp.up_proj.randlora_B", 9.0),
            r"'.*up_proj\.randlora_B' differs from 'base_model.randlora_B'.*copy",
        ),
        (lora(), without(Q_LORA_B), f"tensor '{Q_LORA_B}' is missing"),
        (lora(), cut(Q_LORA_A), rf"'{Q_LORA_A}' has shape \[4, 48\], not the \[5, 48\]"),
        (lora(), first(Q_LORA_A, float("nan")), f"'{Q_LORA_A}' holds a value that is not finite"),
        (
            lora(),
            also(f"{LAYER}self_attn.q_proj.lora_magnitude_vector", 48),
            "lora_magnitude_vector' cannot be served",
        ),
        (
            lora(),
            also("base_model.model.model.embed_tokens.lora_embedding_A", 5, 300),
            "embed_tokens.lora_embedding_A' cannot be served",
        ),
        (
            lora(),
            lambda it: it.update(
                {Q_LORA_A.replace(".weight", ".default.weight"): it[Q_LORA_A] + 0}
            ),
            "are one and the same in PEFT: save one adapter alone",
        ),
        (lora(), also("base_model.model.lm_head.weight", 300, 48), "lm_head.weight' cannot be"),
        (
            lora(),
            also("base_model.model.model.embed_tokens.weight", 300, 48),
            "embed_tokens.weight' cannot be served: .*without biases, embeddings and",
        ),
        (lora(), lambda tensors: tensors.clear(), "the adapter is empty"),
    ],
)
def test_tensors(
    config: PeftConfig, edit: Edit, said: str, place: MakePlace, tmp_path: Path
) -> None:
    folder = save(adapted("llama", config), tmp_path / "out")
    change(folder, edit)
    refused(place(), folder, said)


@pytest.mark.parametrize(
    ("config", "fields", "said"),
    [
        (lora(), {"use_dora": True}, "use_dora"),
        (lora(), {"r": 6}, rf"'{LAYER}.*' has shape"),
        (lora(), {"r": 33}, "r=33 is not a whole number between 1 and 32.*max-rank"),
        (lora(), {"r": 0}, "r=0 is not a whole number between"),
        (lora(), {"rank_pattern": {"q_proj": 2.5}}, r"r=2\.5 is not"),
        (lora(), {"peft_type": "IA3"}, "'IA3' cannot be imported"),
        (vera(), {"r": 2**40}, "r=1099511627776 is not a whole number between 1 and 32"),
        (vera(), {"r": "6"}, "r=6 is not an integer"),
        (randlora(), {"r": -1}, "r=-1 is not a whole number between"),
        (randlora(), {"randlora_alpha": "x"}, "randlora_alpha=x is not a finite number"),
    ],
)
def test_configs(
    config: PeftConfig, fields: dict[str, object], said: str, place: MakePlace, tmp_path: Path
) -> None:
    folder = save(adapted("llama", config), tmp_path / "out")
    configure(folder, **fields)
    refused(place(), folder, said)


def test_real_variants_of_lora(place: MakePlace, tmp_path: Path) -> None:
    """As PEFT itself writes them, not as edited here."""
    here = place()
    for name, config, said in (
        ("dora", lora(use_dora=True), "use_dora"),
        ("head", lora(target_modules=["lm_head", "q_proj"]), "lm_head"),
        ("embeddings", lora(target_modules=["embed_tokens"]), "embed_tokens"),
        ("bias", lora(bias="all"), "bias"),
        ("saved", lora(modules_to_save=["lm_head"]), "modules_to_save"),
        ("pissa", lora(init_lora_weights="pissa"), "init_lora_weights"),
    ):
        refused(here, save(adapted("llama", config), tmp_path / name), said)


@pytest.mark.parametrize("config", [vera(), randlora(), lora()])
def test_another_bases_checkpoint(config: PeftConfig, place: MakePlace, tmp_path: Path) -> None:
    wider = save(adapted("llama", config, intermediate_size=96), tmp_path / "wider")
    refused(place(), wider, r"tensor '.*' has shape .* not .* base 'tiny-llama'")
    other = save(adapted("gpt2", config), tmp_path / "other")
    refused(place(), other, "'transformer.h.0.*' is not a linear of base 'tiny-llama'")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "does not say which torch drew them.*save_projection=True.*torch_era"),
        ({"torch_era": "2.12"}, "half_dtype"),
        ({"half_dtype": "float16"}, "torch_era"),
        ({"torch_era": "2.13", "half_dtype": "float16"}, "torch_era='2.13' is none of 2.11, 2.12"),
        ({"base_dtype": "int8"}, "base_dtype='int8' is none of float32, bfloat16, float16"),
    ],
)
def test_randlora_without_its_matrices_or_their_origin(
    told: dict[str, str], said: str, place: MakePlace, tmp_path: Path
) -> None:
    folder = save(adapted("llama", randlora(save_projection=False)), tmp_path / "out")
    refused(place(), folder, said, **told)


@pytest.mark.parametrize(
    ("config", "name", "said"),
    [
        (lora(), Q_LORA_A, f"'{Q_LORA_A}' holds 7e\\+04, .*float16.*--dtype"),
        (vera(), "base_model.vera_A", "'base_model.vera_A' holds 7e\\+04"),
    ],
)
def test_values_that_overflow_the_served_dtype(
    config: PeftConfig, name: str, said: str, place: MakePlace, tmp_path: Path
) -> None:
    folder = save(adapted("llama", config), tmp_path / "out")
    change(folder, first(name, 70_000.0))
    refused(place(dtype=torch.float16), folder, said)


def filled(**values: float) -> Edit:
    """Every tensor whose name ends so gets that value."""

    def edit(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            for end, value in values.items():
                if end in name:
                    tensor.fill_(value)

    return edit


NOTHING = filled()


@pytest.mark.parametrize(
    ("config", "fields", "edit", "said"),
    [
        (lora(), {"lora_alpha": 1e38}, NOTHING, "update of layer 'model.layers.0.* overflows"),
        (lora(), {"lora_alpha": 1e308}, NOTHING, "'B' of layer .* is too large"),
        (lora(), {"lora_alpha": -1e38}, NOTHING, "overflows"),
        (lora(), {"lora_alpha": 1e38, "use_rslora": True}, NOTHING, "overflows"),
        (lora(), {"alpha_pattern": {"0.*down_proj": 1e38}}, NOTHING, "mlp.down_proj' overflows"),
        (
            lora(),
            {"lora_alpha": 1e-300, "alpha_pattern": {"0.*down_proj": 1e300}},
            NOTHING,
            "down_proj.* overflows|is not finite",
        ),
        (lora(), {}, filled(lora_A=1e30, lora_B=1e30), r"overflows.* reach 1.*e\+61"),
        (lora(), {}, filled(lora_A=3e38, lora_B=-3e38), "too large|overflows"),
        (lora(), {}, filled(lora_A=1e10, lora_B=1e10), "overflows"),
        (vera(), {}, filled(lambda_d=1e20, lambda_b=1e20), "overflows"),
        (vera(), {}, filled(vera_A=1e15, vera_B=1e15), "overflows"),
        (randlora(), {}, filled(randlora_lambda=1e12, randlora_gamma=1e12), "overflows"),
        (randlora(), {"randlora_alpha": 1e38}, NOTHING, "overflows|too large"),
    ],
)
def test_an_update_that_overflows(
    config: PeftConfig,
    fields: dict[str, object],
    edit: Edit,
    said: str,
    place: MakePlace,
    tmp_path: Path,
) -> None:
    """Though each number is finite."""
    folder = save(adapted("llama", config), tmp_path / "out")
    configure(folder, **fields)
    change(folder, edit)
    refused(place(), folder, said)


def test_an_update_that_overflows_in_half_precision_alone(place: MakePlace, tmp_path: Path) -> None:
    folder = save(adapted("llama", lora()), tmp_path / "out")
    change(folder, filled(lora_A=200.0, lora_B=200.0))
    refused(place(dtype=torch.float16), folder, r"the update of layer .* overflows")
    assert str(place("llama").import_adapter(folder)) == "pet@1"


def test_large_numbers_that_cancel_are_served(place: MakePlace, tmp_path: Path) -> None:
    folder = save(adapted("llama", lora()), tmp_path / "out")
    change(folder, filled(lora_A=1e-30, lora_B=1e30))
    here = place()
    assert here.logits(here.import_adapter(folder)).isfinite().all()


def test_a_scale_that_overflows_the_served_dtype(place: MakePlace, tmp_path: Path) -> None:
    folder = save(adapted("llama", lora(lora_alpha=10**6)), tmp_path / "out")
    change(folder, first(Q_LORA_B, 60_000.0))
    refused(
        place(dtype=torch.float16), folder, "'B' of layer 'model.* the scale 200000.* too large for"
    )


def test_files_that_are_none(place: MakePlace, tmp_path: Path) -> None:
    here = place()
    before = here.listing()
    folder = save(adapted("llama", lora()), tmp_path / "out")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    config = (folder / "adapter_config.json").read_bytes()
    for said, name, file_name, parts in (
        ("pickle", "pet", "adapter_model.bin", (config, weights)),
        ("safetensors", "pet", "adapter_model.safetensors", (config, weights[:-5])),
        ("not JSON", "pet", "adapter_model.safetensors", (b"{", weights)),
    ):
        with pytest.raises(InvalidCheckpoint, match=said):
            here.porting.import_adapter("ann", name, *map(BytesIO, parts), file_name=file_name)
    with pytest.raises(InvalidName, match=r"'\.\./pet' is not a name"):
        here.porting.import_adapter("ann", "../pet", BytesIO(config), BytesIO(weights))
    assert here.listing() == before


def test_an_unknown_format(place: MakePlace, tmp_path: Path) -> None:
    here = place()
    ref = here.import_adapter(save(adapted("llama", lora()), tmp_path / "out"))
    with pytest.raises(InvalidRequest, match="'gguf' is none of peft, peft-lora, merged"):
        here.porting.export_adapter(ref, "gguf")


class TestOneAtATime:
    @pytest.fixture(autouse=True)
    def _make(self, place: MakePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An export that lasts until the test ends it."""
        self.here = place()
        ref = self.here.import_adapter(save(adapted("llama", lora()), tmp_path / "out"))
        self.entered, self.go_on = threading.Event(), threading.Event()

        def slow(adapter: CheckedAdapter) -> PeftCheckpoint | None:
            self.entered.set()
            assert self.go_on.wait(10)
            return as_lora(adapter)

        monkeypatch.setattr(service, "as_lora", slow)
        self.export: Callable[[], Path] = lambda: self.here.porting.export_adapter(ref, "peft-lora")

    def test_a_request_that_waits_too_long_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "_MAX_WAIT_S", 0.05)
        with ThreadPoolExecutor() as pool:
            first = pool.submit(self.export)
            assert self.entered.wait(10)
            with pytest.raises(QueueFull, match="is still running") as refusal:
                self.export()
            self.go_on.set()
            assert first.result().is_dir() and refusal.value.retry_after_s == 30

    def test_only_few_may_wait(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            requests = [pool.submit(self.export) for _ in range(6)]
            assert eventually(lambda: sum(one.done() for one in requests) == 2)
            messages = {str(one.exception()) for one in requests if one.done()}
            assert messages == {
                "4 imports and exports are running or waiting: try again in 30 seconds"
            }
            self.go_on.set()
            results = [one for one in requests if one.exception() is None]
            assert len(results) == 4 and len({one.result() for one in results}) == 4
