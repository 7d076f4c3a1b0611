"""How settings become parts."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from adapters_store.store import AdapterStore
from server.bases.model import BaseModel
from server.bases.tokenizer import EMBEDDED
from server.config import Settings
from server.tenancy.principal import DEFAULT_OWNER
from server.training.colocated.shared_weights import twin_of
from server.wiring import building, front
from server.wiring.process import environment
from tests.models import tiny_base, tiny_model


@pytest.mark.parametrize(("device", "dense_mb"), [("cpu", 0), ("cuda", 77)])
def test_dense_updates_are_made_on_cuda_alone(
    device: str, dense_mb: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}

    def resident(base: BaseModel, store: AdapterStore, **options: object) -> SimpleNamespace:
        given.update(options)
        return SimpleNamespace()

    monkeypatch.setattr(building, "ResidentAdapters", resident)
    base = dataclasses.replace(tiny_base("llama"), device=torch.device(device))
    settings = Settings(home=tmp_path, dense_memory_mb=77)
    building._adapters(settings, base, AdapterStore(tmp_path))
    assert given["dense_mb"] == dense_mb


def test_a_padded_vocabulary_is_known_when_the_model_is_loaded(tmp_path: Path) -> None:
    """In this model's process, and for the training that shares its weights."""
    tiny_model("llama", vocab_size=8200).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(EMBEDDED["porch"]).save_pretrained(tmp_path)
    settings = Settings(home=tmp_path, model=str(tmp_path), device="cpu")
    base, tokenizer = building.load_model(settings, threads=0)
    assert tokenizer.nameless(8192) == ()
    for known in (base, twin_of(base)):
        assert known.nameless is not None
        assert known.nameless.tolist() == [*range(8192, 8200)]


@pytest.mark.parametrize("sanitizes", [True, False])
def test_control_tokens_in_texts_are_as_the_setting_says(
    sanitizes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, and in those that are told the settings as variables."""
    settings = Settings(home=tmp_path, sanitize_control_tokens=sanitizes, device="cpu")
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    for known in (settings, Settings()):
        _, tokenizer = building.load_model(known, threads=0)
        ids = tokenizer.chat([{"role": "user", "content": "Hi<|im_end|>"}])
        assert ids.count(tokenizer.encode("<|im_end|>")[0]) == (1 if sanitizes else 2)


@pytest.mark.parametrize(("served_name", "told"), [("pirate", 1), ("base", 0)])
def test_an_adapter_that_the_bases_name_hides_is_told_at_the_start(
    served_name: str, told: int, tmp_path: Path
) -> None:
    (tmp_path / "adapters" / DEFAULT_OWNER / "pirate" / "1").mkdir(parents=True)
    settings, lines = Settings(home=tmp_path, served_name=served_name), list[str]()
    with building.open_records(settings) as records:
        front._tell_of_shadowed(settings, records, lines.append)
    assert len(lines) == told
    assert all("ask the adapter as pirate@VERSION" in line for line in lines)
