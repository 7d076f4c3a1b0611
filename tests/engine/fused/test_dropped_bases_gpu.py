"""On CUDA: a basis that the budget drops leaves the device's memory, with the graphs that read it.

The same bookkeeping is tested without a device in `tests/adapters/batch/test_dropped_bases.py`.
"""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from adapters_store.manifest import AdapterRef
from server.bases.model import BaseModel
from server.engine.blocks import BlockPool
from server.engine.fused.decode_graphs import DecodeGraphs
from server.engine.fused.decoder import FusedDecoder
from server.engine.fused.fused_forward import FusedForward
from server.engine.fused.graph_cache import GraphCache
from server.engine.fused.prompt_graphs import PromptGraphs
from server.engine.kv_cache import KVCache
from server.engine.sequence import Chunk, Sequence
from tests.adapters.made import make_adapter
from tests.adapters.served import Served
from tests.engine.driving import make_sequence
from tests.models import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

RANK, WIDEST = 256, 2048
BASIS_BYTES = 2 * RANK * WIDEST * 2  # A and B in bfloat16: 2 MiB
BUDGET_MB, FITTING = 5, 2
PROMPT = [5, 6, 7, 8, 9, 10]


class Replayed:
    """A tiny Llama whose steps are replayed, with adapters that each have a basis of their own."""

    def __init__(self, folder: Path) -> None:
        model = tiny_model(
            "llama",
            dtype=torch.bfloat16,
            hidden_size=64,
            head_dim=16,
            intermediate_size=WIDEST,
            num_hidden_layers=1,
        )
        torch.nn.Module.to(model, "cuda")
        base = BaseModel.of(model, "tiny", fingerprint="tiny")
        self.served = Served(base, folder, max_rank=RANK, memory_mb=64, basis_mb=BUDGET_MB)
        kv = KVCache(base, memory_mb=4, block_tokens=8)
        self._pool = BlockPool(kv.num_blocks, 8)
        decoder = FusedDecoder(base)
        self.graphs = GraphCache(self.served.adapters)
        self._forward = FusedForward(
            decoder,
            self.served.adapters,
            kv,
            DecodeGraphs(decoder, kv, self.graphs, max_rows=4, max_context=64, prompt_rows=0),
            PromptGraphs(decoder, kv, self.graphs, max_tokens=64),
        )
        self._refs: dict[int, AdapterRef] = {}

    def answer(self, seed: int) -> Tensor:
        """Logits of a prompt and of a decode, both replayed, by the adapter of this basis."""
        if seed not in self._refs:
            made = make_adapter(self.served.base, rank=RANK, seed=seed, draw=seed)
            self._refs[seed] = self.served.publish(made, f"a{seed}")
        slot = self.served.acquire(self._refs[seed])
        sequence = make_sequence(0, PROMPT, slot=slot)
        logits = [self._step(sequence, len(PROMPT))]
        sequence.output.append(11)
        logits.append(self._step(sequence, 1))
        self._pool.free(sequence)
        self.served.adapters.release(self._refs[seed])
        return torch.cat(logits)

    @torch.inference_mode()
    def _step(self, sequence: Sequence, length: int) -> Tensor:
        assert self._pool.grow(sequence, sequence.num_computed + length)
        last = torch.zeros(0, dtype=torch.int64, device="cuda")
        _, logits = self._forward.step([Chunk(sequence, length)], last)
        sequence.num_computed += length
        return logits.float().cpu()

    def matrices(self) -> list[weakref.ref[Tensor]]:
        """The matrices A and B on the device."""
        return [
            weakref.ref(matrix)
            for loaded in self.served.adapters.steps.bases.loaded.values()
            for pair in set(loaded.pairs.values())
            for matrix in (pair.a, pair.bt)
        ]


@pytest.fixture
def replayed(tmp_path: Path) -> Iterator[Replayed]:
    engine = Replayed(tmp_path)
    yield engine
    engine.served.adapters.close()


def allocated() -> int:
    gc.collect()
    torch.cuda.synchronize()
    return int(torch.cuda.memory_allocated())


def test_memory_falls_back_when_bases_leave(replayed: Replayed) -> None:
    for seed in range(FITTING + 1):  # workspaces, kernels and fixed inputs are made by then
        replayed.answer(seed)
    before = allocated()
    matrices = replayed.matrices()
    for seed in range(FITTING + 1, FITTING + 10):
        replayed.answer(seed)
        matrices += replayed.matrices()
    grown = allocated() - before
    assert abs(grown) < BASIS_BYTES // 2, f"{grown} bytes more than with the first {FITTING} bases"
    alive = {id(it()) for it in matrices if it() is not None}
    assert len(alive) == 2 * FITTING, "matrices that the budget dropped are still referred to"
    names = [name for _, name in replayed.graphs._cache._entries]
    assert len(names) == 2 * FITTING, "one graph of prompts and one of decodes for each basis"


def test_a_basis_that_comes_back_gives_the_same_answers(replayed: Replayed) -> None:
    """A graph of the matrices that left would read whatever lies at their addresses now."""
    first = [replayed.answer(seed) for seed in range(FITTING + 3)]
    for _ in range(2):
        for seed, expected in enumerate(first):
            torch.testing.assert_close(replayed.answer(seed), expected, rtol=2e-2, atol=2e-2)
    assert not torch.allclose(first[0], first[1], rtol=2e-2, atol=2e-2)
