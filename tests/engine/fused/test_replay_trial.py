"""The look at replayed steps before anybody is served: it passes what is right alone."""

from collections.abc import Sequence as Seq

import pytest
import torch
from torch import Tensor

from server.engine.fused.replay_trial import check_replays
from server.engine.kv_cache import KVCache
from server.engine.launched_step import LogitRows
from server.engine.plain import attention
from server.engine.plain.forward import PlainForward
from server.engine.plain.token_layout import Layout
from server.engine.sequence import Chunk
from server.errors import UnsupportedModel
from tests.models import tiny_base


class Spoiled(PlainForward):
    """Wrong in the steps that have a chunk of one of these lengths."""

    lengths: Seq[int] = ()

    def step(self, chunks: Seq[Chunk], last: Tensor) -> tuple[LogitRows, Tensor]:
        logit_rows, logits = super().step(chunks, last)
        wrong = any(chunk.length in self.lengths for chunk in chunks)
        return logit_rows, logits.roll(1, dims=-1) if wrong else logits

    def logits(self, layout: Layout, rows: Seq[int]) -> Tensor:
        return super().logits(layout, rows)


@pytest.mark.parametrize(
    "wrong, said",
    [((), None), ((40,), "step 0"), ((30,), "step 1"), ((12,), "step 3"), ((1,), "step 1")],
)
def test_what_is_wrong_in_any_kind_of_step_is_refused(wrong: Seq[int], said: str | None) -> None:
    base = tiny_base("llama")
    kv = KVCache(base, memory_mb=1, block_tokens=8)
    attention.register()
    base.model.set_attn_implementation(attention.NAME)
    replayed = Spoiled(base, None, kv)
    replayed.lengths = wrong
    flat = PlainForward(base, None, kv)
    if said is None:
        check_replays(base, kv, replayed, flat)
        assert all(torch.isfinite(keys).all() for keys, _ in kv.layers)
        return
    with pytest.raises(UnsupportedModel, match=said):
        check_replays(base, kv, replayed, flat)


def test_a_cache_without_room_for_it_is_told_of() -> None:
    base = tiny_base("llama")
    kv = KVCache(base, memory_mb=1, block_tokens=1000)
    plain = PlainForward(base, None, kv)
    kv.num_blocks = 1
    with pytest.raises(UnsupportedModel, match="raise kv_memory_mb"):
        check_replays(base, kv, plain, plain)
