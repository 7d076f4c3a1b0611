"""That kernels which begin before the last one has ended compute the same."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from server.adapters.kernels.lora_expand import LoraPart, expand
from server.adapters.kernels.lora_gate import expand_gate
from server.adapters.kernels.lora_shrink import shrink
from server.adapters.kernels.segments import Segments, capacity_for
from server.adapters.kernels.vera_gate import gate_vera
from server.adapters.kernels.vera_product_kernel import VeraPart, add_vera
from server.engine.kernels.mlp_gate import gate_mul
from server.engine.kernels.norm import add_rms_norm
from server.kernels import dependent_launch
from tests.adapters.kernels.bank import Rows, asked
from tests.engine.kernels.near import DEVICE, noise

TOKENS, HIDDEN, WIDTH, RANK, LORA_RANK = 40, 512, 1536, 256, 16


class Layers:
    """A few layers' worth of launches that read each other's results, as in a decode step."""

    def __init__(self) -> None:
        rows, dtype = Rows(), torch.bfloat16
        self.vera = VeraPart(0, HIDDEN, rows.place(RANK), rows.place(HIDDEN))
        self.gate_part, self.up_part = (
            VeraPart(column, WIDTH, rows.place(RANK), rows.place(WIDTH)) for column in (0, WIDTH)
        )
        self.lora = LoraPart(
            0, HIDDEN, HIDDEN, rows.place(LORA_RANK * HIDDEN), rows.place(HIDDEN * LORA_RANK)
        )
        self.lora_gates = [
            LoraPart(
                column, HIDDEN, WIDTH, rows.place(LORA_RANK * HIDDEN), rows.place(WIDTH * LORA_RANK)
            )
            for column in (0, WIDTH)
        ]
        self.memory, first_pages = rows.memory(16, dtype)
        self.pages = asked("mixed", TOKENS, first_pages)
        self.segments = Segments.of(self.pages.tolist(), capacity_for(TOKENS, 16), DEVICE)
        self.h = noise(TOKENS, HIDDEN, dtype=dtype, seed=1)
        self.norm = noise(HIDDEN, dtype=dtype, seed=2)
        self.bt = noise(RANK, WIDTH, dtype=dtype, seed=3) / 16
        self.out = noise(HIDDEN + RANK, HIDDEN, dtype=dtype, seed=4) / 32
        self.up = noise(2 * WIDTH + RANK, HIDDEN, dtype=dtype, seed=5) / 32
        self.down = noise(HIDDEN, WIDTH, dtype=dtype, seed=6) / 64

    def run(self) -> torch.Tensor:
        h = self.h.clone()
        delta = None
        for _ in range(6):
            x = add_rms_norm(h, delta, self.norm, 1e-5)
            y = x @ self.out.t()
            z = y[:, HIDDEN:]
            add_vera(y[:, :HIDDEN], z, self.bt, self.memory, self.pages, [self.vera], RANK)
            s = shrink(x, self.memory, self.segments, [self.lora], LORA_RANK)
            expand(y, s, self.memory, self.segments, [self.lora], LORA_RANK)
            x = add_rms_norm(h, y[:, :HIDDEN], self.norm, 1e-5)
            y = x @ self.up.t()
            act = gate_vera(
                y,
                y[:, 2 * WIDTH :],
                self.bt,
                self.memory,
                self.pages,
                self.gate_part,
                self.up_part,
                WIDTH,
                RANK,
            )
            s = shrink(x, self.memory, self.segments, self.lora_gates, LORA_RANK)
            act += expand_gate(
                y,
                s,
                self.memory,
                self.segments,
                self.pages,
                self.lora_gates[0],
                self.lora_gates[1],
                WIDTH,
                LORA_RANK,
            )
            act += gate_mul(y, WIDTH)
            delta = act @ self.down.t()
        return h


def test_nothing_begins_early_where_it_cannot() -> None:
    assert not dependent_launch.early(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_that_begin_early_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Layers()
    monkeypatch.setattr(dependent_launch, "EARLY", False)
    expected = layers.run()
    monkeypatch.setattr(dependent_launch, "EARLY", True)
    assert torch.equal(layers.run(), expected)  # and compiles, which a capture may not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layers.run()
    for _ in range(100):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, expected)
