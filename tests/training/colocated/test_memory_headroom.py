"""A training pass that uses what serving needs ends as if memory had run out."""

import pytest
import torch

from server.bases.model import BaseModel
from server.training.colocated.memory_headroom import keep_memory_headroom, limit_passes
from server.training.colocated.shared_weights import twin_of
from tests.models import tiny_base

TOKENS = torch.arange(3, 20)[None]


def test_a_pass_ends_where_too_much_is_taken_and_the_next_may_run() -> None:
    base = tiny_base("llama")
    twin, taken = twin_of(base), [100]
    limit_passes(twin, 100, lambda: taken[0])
    expected = base.model(TOKENS).logits
    assert torch.equal(twin.model(TOKENS).logits, expected)
    taken[0] = 101
    with pytest.raises(torch.OutOfMemoryError, match="memory that serving needs"):
        twin.model(TOKENS)
    assert torch.equal(base.model(TOKENS).logits, expected)  # the engine's own passes go on
    taken[0] = 100
    assert torch.equal(twin.model(TOKENS).logits, expected)


def test_every_layer_is_looked_at() -> None:
    base, looks = tiny_base("llama", num_hidden_layers=6), []
    limit_passes(base, 1, lambda: len(looks.append(1) or ()))  # type: ignore[func-returns-value]
    base.model(TOKENS)
    assert 5 <= len(looks) <= 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_what_the_engine_may_need_is_left() -> None:
    base = tiny_base("llama")
    torch.nn.Module.to(base.model, "cuda")
    twin = twin_of(BaseModel.of(base.model, "tiny"))
    tokens = TOKENS.cuda()
    expected = twin.model(tokens).logits
    keep_memory_headroom(twin)
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free - 2**30, dtype=torch.uint8, device="cuda")
    with pytest.raises(torch.OutOfMemoryError, match="memory that serving needs"):
        twin.model(tokens)
    del hog
    torch.cuda.empty_cache()
    assert torch.equal(twin.model(tokens).logits, expected)
