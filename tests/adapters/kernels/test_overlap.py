"""What launches ask for ahead of time, and that overlapping changes no result."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from server.adapters.kernels import overlap
from server.adapters.kernels.lora import LoraPart, expand
from server.adapters.kernels.lora_gate import expand_gate
from server.adapters.kernels.lora_shrink import shrink
from server.adapters.kernels.overlap import Ahead, ahead_of
from server.adapters.kernels.segments import Segments, capacity_for
from server.adapters.kernels.vera import VeraPart, add_vera
from server.adapters.kernels.vera_gate import gate_vera
from server.engine.kernels.gate import silu_mul
from server.engine.kernels.norm import add_rms_norm
from tests.adapters.kernels.bank import Rows, asked
from tests.engine.kernels.near import DEVICE, noise

CHUNK = 2048


def places(ahead: Ahead) -> list[int]:
    return [ahead.start + index * ahead.stride for index in range(ahead.chunks)]


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_able", lambda device: True)


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("mib", [1, 3, 7, 8, 20])
@pytest.mark.parametrize("shape", [(2560, 2048), (4100, 1024), (999, 3584)])
def test_chunks_lie_inside_and_two_launches_share_none(
    mib: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "AHEAD_BYTES", mib * 2**20)
    weight = torch.empty(shape, dtype=torch.bfloat16)
    like = weight[:8]
    first = places(ahead_of(weight, like, 64, 8))
    second = places(ahead_of(weight, like, 64, 8, second=True))
    assert len(first) == min(mib * 2**20, weight.nbytes // 2) // CHUNK
    assert set(first).isdisjoint(second)
    assert max(first + second) + CHUNK <= weight.nbytes
    columns = {at % (shape[1] * 2) // CHUNK for at in first}
    assert len(columns) == -(-shape[1] * 2 // CHUNK)  # of every part of a row some


@pytest.mark.usefixtures("able")
def test_a_launch_asks_no_more_than_its_threads_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "AHEAD_BYTES", 2**20)
    weight = torch.empty(4096, 2048, dtype=torch.bfloat16)
    assert ahead_of(weight, weight[:1], 1, 4).chunks == 128


def test_nothing_is_asked_for_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.empty(4096, 64)
    monkeypatch.setattr(overlap, "_able", lambda device: True)
    monkeypatch.setattr(overlap, "AHEAD_BYTES", 0)
    assert ahead_of(weight, weight[:1], 64, 4).chunks == 0
    monkeypatch.setattr(overlap, "AHEAD_BYTES", 2**20)
    assert ahead_of(None, weight[:1], 64, 4).chunks == 0
    assert ahead_of(weight, weight[:2000], 64, 4).chunks == 0
    monkeypatch.setattr(overlap, "_able", lambda device: False)
    assert ahead_of(weight, weight[:1], 64, 4).chunks == 0


TOKENS, HIDDEN, WIDTH, RANK, LORA_RANK = 40, 512, 1536, 256, 16


class Layers:
    """A few layers' worth of launches that read each other's results, as in a decode step."""

    def __init__(self) -> None:
        rows, dtype = Rows(), torch.bfloat16
        self.vera = VeraPart(0, HIDDEN, rows.place(RANK), rows.place(HIDDEN))
        self.gates = [
            VeraPart(column, WIDTH, rows.place(RANK), rows.place(WIDTH)) for column in (0, WIDTH)
        ]
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
            x = add_rms_norm(h, delta, self.norm, 1e-5, self.out)
            y = x @ self.out.t()
            add_vera(
                y[:, :HIDDEN], y[:, HIDDEN:], self.bt, self.memory, self.pages, [self.vera], RANK,
                then=self.up,
            )  # fmt: skip
            s = shrink(x, self.memory, self.segments, [self.lora], LORA_RANK, expands=True)
            expand(y, s, self.memory, self.segments, [self.lora], LORA_RANK, then=self.up)
            x = add_rms_norm(h, y[:, :HIDDEN], self.norm, 1e-5, self.up)
            y = x @ self.up.t()
            act = gate_vera(
                y, y[:, 2 * WIDTH :], self.bt, self.memory, self.pages, *self.gates, WIDTH, RANK,
                then=self.down,
            )  # fmt: skip
            s = shrink(x, self.memory, self.segments, self.lora_gates, LORA_RANK, expands=True)
            act += expand_gate(
                y, s, self.memory, self.segments, self.pages, *self.lora_gates, WIDTH, LORA_RANK,
                then=self.down,
            )  # fmt: skip
            act += silu_mul(y, WIDTH, self.down)
            delta = act @ self.down.t()
        return h


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_overlapping_launches_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Layers()
    expected = layers.run()
    monkeypatch.setattr(overlap, "EARLY", True)
    monkeypatch.setattr(overlap, "AHEAD_BYTES", 2**20)
    monkeypatch.setattr(overlap, "OWN_BYTES", 2**20)
    monkeypatch.setattr(overlap, "LATER", True)
    assert torch.equal(layers.run(), expected)  # and compiles, which a capture may not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layers.run()
    for _ in range(20):
        graph.replay()
    assert torch.equal(captured, expected)
