"""A twin is the same base in the same memory; what is done to one is not done to the other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from server.adapters.batch.linears import install
from server.adapters.batch.sites import join
from server.bases.base_files import load_base
from server.bases.model import BaseModel
from server.engine.kv_cache import KVCache
from server.engine.runner import Runner
from server.errors import UnsupportedModel
from server.training.colocated.shared_weights import twin_of
from tests.models import KINDS, Kind, tiny_base, tiny_model


def logits(base: BaseModel) -> Tensor:
    with torch.inference_mode():
        tokens = torch.arange(3, 20, device=base.device)[None]
        found: Tensor = base.model(tokens).logits
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_is_the_same_base(kind: Kind) -> None:
    mine = tiny_base(kind)
    theirs = twin_of(mine)
    assert torch.equal(logits(theirs), logits(mine))
    assert list(theirs.targets) == list(mine.targets)
    for fact in ("name", "fingerprint", "max_context", "eos_token_ids", "dtype", "num_layers"):
        assert getattr(theirs, fact) == getattr(mine, fact), fact
    assert not any(it.requires_grad for it in theirs.model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_no_weight_is_in_memory_twice_whatever_becomes_of_it(tied: bool) -> None:
    base = tiny_base("llama", tie_word_embeddings=tied)
    twin = twin_of(base)
    names = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    join([base.targets[name] for name in names], None)  # moves the weights
    pairs = zip(base.model.parameters(), twin.model.parameters(), strict=True)
    assert all(one is other for one, other in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_engine_has_taken_over_has_a_twin_that_runs(kind: Kind) -> None:
    base = tiny_base(kind)
    expected = logits(base)
    Runner(base, None, KVCache(base, memory_mb=1, block_tokens=16))
    assert torch.equal(logits(twin_of(base)), expected)


def test_adapters_and_buffers_are_apart() -> None:
    base = tiny_base("llama")
    twin = twin_of(base)
    assert install(twin) is not install(base)
    assert install(twin) is not install(twin_of(base))
    theirs = dict(twin.model.named_buffers())
    for name, buffer in base.model.named_buffers():
        assert torch.equal(buffer, theirs[name])
        assert buffer.data_ptr() != theirs[name].data_ptr()


def test_what_a_folder_says_of_ends_is_kept(tmp_path: Path) -> None:
    model = tiny_model("llama")
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(tmp_path)
    assert twin_of(load_base(tmp_path, device="cpu")).eos_token_ids == {2, 7}


def test_a_tensor_that_is_neither_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    before = type(base.model).__init__

    def init(self: torch.nn.Module, *args: object, **kwargs: object) -> None:
        before(self, *args, **kwargs)  # type: ignore[arg-type]
        self.loose = torch.ones(3)

    monkeypatch.setattr(type(base.model), "__init__", init)
    with pytest.raises(UnsupportedModel, match=r"keeps \.loose neither .* --worker-process yes"):
        twin_of(base)
