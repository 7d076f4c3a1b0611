"""Masks of dropout follow from the CPU's generator, wherever the rows are."""

import threading

import pytest
import torch
from torch.nn import functional

from server.adapters.methods.projection import thinned

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_the_seed_decides_and_the_mean_stays(device: str) -> None:
    rows = torch.ones(200, 500, device=device)

    def drawn(seed: int) -> torch.Tensor:
        torch.default_generator.manual_seed(seed)
        return thinned(rows, 0.2)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert drawn(1).unique().tolist() == [0.0, pytest.approx(1.25)]
    assert drawn(1).mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_pass_where_numbers_did(device: str) -> None:
    rows = torch.ones(20, 50, device=device, requires_grad=True)
    found = thinned(rows, 0.5)
    found.sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad, found.detach())


def test_on_a_cpu_it_is_torch_s_own() -> None:
    rows = torch.randn(20, 50)
    torch.manual_seed(7)
    expected = functional.dropout(rows, 0.3)
    torch.manual_seed(7)
    assert torch.equal(thinned(rows, 0.3), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_mask_is_drawn_while_another_thread_captures_a_graph() -> None:
    """Its capture claims the device's own generator: to draw from that would fail."""
    rows = torch.ones(64, 64, device="cuda")
    begun, drawn = threading.Event(), threading.Event()

    def capture() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                begun.set()
                assert drawn.wait(30)
                _ = rows + 1
            finally:
                graph.capture_end()

    thread = threading.Thread(target=capture)
    thread.start()
    assert begun.wait(30)
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            found = thinned(rows, 0.5)
    finally:
        drawn.set()
        thread.join()
    torch.cuda.synchronize()
    assert 0.4 < (found == 0).float().mean().item() < 0.6
