"""A real device that a kernel has broken: the process ends, after it has told who waits."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from server.bases.model import BaseModel, device_works
from server.engine.blocks import BlockPool
from server.engine.device import high_priority_stream
from server.engine.kv_cache import KVCache
from server.engine.runner import Runner
from server.engine.sequence import SamplingParams
from server.metrics import Metrics
from server.scheduler.loop import Limits, ServingLoop
from server.scheduler.request import CallbackListener, Generation, TextDelta
from server.wiring.process import end_soon
from tests.models import tiny_model
from tests.scheduler.fakes import FakeSlots, NumberDecoder

PROGRAM = "from tests.engine.test_device_lost import break_the_device; break_the_device()"


def break_the_device() -> None:
    """Runs in a process of its own, which it ends."""
    device = torch.device("cuda")
    model = tiny_model("llama")
    torch.nn.Module.to(model, device)
    base, within, ended = (
        BaseModel.of(model, "tiny"),
        high_priority_stream(device),
        threading.Event(),
    )
    with within():
        kv = KVCache(base, memory_mb=4, block_tokens=16)
        runner = Runner(base, None, kv)
    loop = ServingLoop(
        runner,
        FakeSlots(),
        BlockPool(kv.num_blocks, 16),
        NumberDecoder,
        eos=frozenset(),
        limits=Limits(max_rows=4, max_step_tokens=32, max_waiting=4, max_context=96),
        metrics=Metrics("tiny"),
        thread_context=within,
        device_works=lambda: device_works(device),
        on_device_lost=end_soon,
    )

    def hear(delta: TextDelta) -> None:
        if len(heard) == 2:
            torch.zeros(1, device=device)[torch.tensor([7], device=device)]  # asserts on the device
        heard.append(delta)
        if delta.finish is not None:
            print(type(delta.error).__name__, flush=True)
            ended.set()

    heard: list[TextDelta] = []
    loop.start()
    params = SamplingParams(max_tokens=60)
    loop.submit(Generation("r", "owner", (3, 4, 5), params), CallbackListener(hear))
    ended.wait()
    threading.Event().wait(30)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_engine_whose_device_is_broken_tells_it_and_ends_its_process() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == "Unavailable\n", ended.stderr
    assert ended.returncode == os.EX_TEMPFAIL, ended.stderr
