"""A captured graph of the kernels follows what its inputs hold when it is replayed."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from server.engine.kernels.decode_attention import decode_attention, reference_decode_attention
from server.engine.kernels.mlp_gate import gate_mul, reference_gate_mul
from server.engine.kernels.norm import add_rms_norm, reference_add_rms_norm
from server.engine.kernels.rotary import reference_rotate_and_store, rotate_and_store
from tests.engine.kernels.near import assert_near, noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ROWS, HEADS, KV_HEADS, HEAD_DIM, BLOCKS, BLOCK_TOKENS = 6, 8, 2, 64, 64, 16
HIDDEN = HEADS * HEAD_DIM
DTYPE = torch.bfloat16


class Step:
    """The inputs of one layer's kernels, at fixed addresses."""

    def __init__(self) -> None:
        self.h = noise(ROWS, HIDDEN, dtype=DTYPE, seed=1)
        self.qkv = noise(ROWS, HIDDEN + 2 * KV_HEADS * HEAD_DIM, dtype=DTYPE, seed=2)
        self.weight = noise(HIDDEN, dtype=DTYPE, seed=3)
        self.cos, self.sin = (
            noise(ROWS, HEAD_DIM // 2, dtype=DTYPE, seed=seed).repeat(1, 2) for seed in (4, 5)
        )
        self.memory = noise(2, KV_HEADS, BLOCKS, BLOCK_TOKENS, HEAD_DIM, dtype=DTYPE, seed=6)
        self.tables = torch.arange(60, dtype=torch.int32, device="cuda").view(ROWS, 10)
        self.lens = torch.ones(ROWS, dtype=torch.int32, device="cuda")

    def move(self, contexts: list[int]) -> None:
        """Give each row another context, and other blocks."""
        self.lens.copy_(torch.tensor(contexts))
        order = torch.randperm(60, generator=torch.Generator().manual_seed(sum(contexts)))
        self.tables.copy_(order.view(ROWS, 10))

    def run(self, *, plain: bool) -> list[torch.Tensor]:
        """The layer's results; `plain` leaves the inputs as they are."""
        norm, rotate, attend, gate = (
            (reference_add_rms_norm, reference_rotate_and_store, reference_decode_attention,
             reference_gate_mul)
            if plain
            else (add_rms_norm, rotate_and_store, decode_attention, gate_mul)
        )  # fmt: skip
        h, qkv, memory = self.h.clone(), self.qkv.clone(), self.memory.clone()
        x = norm(h, h, self.weight, 1e-5)
        q, k, v = qkv.split([HIDDEN, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM], dim=1)
        last = (self.lens - 1).clamp(min=0).long()
        block = self.tables.gather(1, (last // BLOCK_TOKENS)[:, None])[:, 0]
        write_at = block * BLOCK_TOKENS + last % BLOCK_TOKENS
        rotate(q, k, v, self.cos, self.sin, memory[0], memory[1], write_at)
        attended = attend(q, memory[0], memory[1], self.tables, self.lens, 0.125)
        return [x, qkv, memory, attended, gate(attended, HIDDEN // 2)]


def test_a_graph_follows_its_inputs() -> None:
    step = Step()
    step.run(plain=False)  # compiles, which a capture may not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step.run(plain=False)
    for contexts in ([1, 2, 3, 4, 5, 6], [160, 0, 16, 17, 100, 1]):
        step.move(contexts)
        graph.replay()
        for found, expected in zip(captured, step.run(plain=True), strict=True):
            assert_near(found, expected)
