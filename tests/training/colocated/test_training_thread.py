"""A thread that trains in an engine's process: it gives way, begins again, and can be stopped."""

import math
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from server.bases.model import BaseModel
from server.engine.blocks import BlockPool
from server.engine.device import high_priority_stream
from server.engine.kv_cache import KVCache
from server.engine.runner import Runner
from server.jobs.queue.job import JobStatus
from server.pulse import Pulse
from server.training.colocated import training_thread as module
from server.training.colocated.training_thread import TrainingThread, fast_thread_switching
from server.training.job.worker_loop import DeviceLost, run_worker
from tests.engine.driving import Engine, generate, make_sequence, random_prompt
from tests.models import VOCAB, tiny_base, tiny_model
from tests.training.chats import byte_tokenizer
from tests.training.job.test_worker import OPTIONS, job_now, submit, until, work_off
from tests.training.workplace import Workplace

TOKENS = torch.arange(3, 20)[None]
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)


def beside_of(
    pulse: Pulse | None = None, lost: Callable[[], None] = lambda: None, target: float = 1.3
) -> TrainingThread:
    return TrainingThread(tiny_base("llama"), pulse or Pulse(), target, lost)


def stop(beside: TrainingThread) -> None:
    beside.stop()
    assert beside.join(20)


def test_a_job_is_trained_on_the_base_of_an_engine_that_has_taken_it_over(
    tmp_path: Path,
) -> None:
    place = Workplace.at(tmp_path)
    base = tiny_base("llama")
    before = {name: it.clone() for name, it in base.model.named_parameters()}
    Runner(base, None, KVCache(base, memory_mb=1, block_tokens=16))
    beside = TrainingThread(base, Pulse(), 1.3, lambda: None)
    parts = place.parts(load=lambda: (beside.base, byte_tokenizer()), checkpoint_every_s=1000)
    job = submit(place, options=OPTIONS)
    beside.start(lambda stop: run_worker(parts, stop))
    until(lambda: job_now(place, job).status.ended)
    stop(beside)
    assert job_now(place, job).status == JobStatus.SUCCEEDED
    for name, weight in base.model.named_parameters():
        assert torch.equal(weight, before[name]), name
        assert weight.grad is None and not weight.requires_grad


def test_it_gives_way_to_the_engine_of_its_process() -> None:
    pulse = Pulse()
    pulse.running = 1
    beside, passed = beside_of(pulse), threading.Event()

    def work(stop: threading.Event) -> None:
        beside.base.model(TOKENS)  # rests, to listen, until nobody asks any more
        passed.set()
        stop.wait()

    beside.start(work)
    assert not passed.wait(0.3)
    pulse.running = 0
    assert passed.wait(10)
    stop(beside)


def test_without_a_target_it_never_rests() -> None:
    pulse = Pulse()
    pulse.running = 1
    beside, passed = beside_of(pulse, target=math.inf), threading.Event()

    def work(stop: threading.Event) -> None:
        beside.base.model(TOKENS)
        passed.set()
        stop.wait()

    beside.start(work)
    assert passed.wait(10)
    stop(beside)


def test_what_fails_begins_again_and_who_cares_is_told() -> None:
    beside, ends, begun = beside_of(), [], threading.Semaphore(0)

    def work(stop: threading.Event) -> None:
        begun.release()
        raise OSError("the base cannot be loaded")

    def on_end() -> None:
        ends.append(beside.restarts)
        raise RuntimeError("nobody could be told")

    beside.start(work, on_end=on_end)
    for _ in range(3):
        assert begun.acquire(timeout=10)
    assert beside.alive
    stop(beside)
    assert ends[:2] == [0, 1]
    assert not beside.alive


def test_a_device_that_is_lost_is_told_and_not_tried_again() -> None:
    lost = threading.Event()
    beside, ends = beside_of(lost=lost.set), []

    def work(stop: threading.Event) -> None:
        raise DeviceLost("an illegal memory access was encountered")

    beside.start(work, on_end=lambda: ends.append(1))
    assert lost.wait(10)
    assert beside.join(10)
    assert (ends, beside.restarts) == ([], 0)


def test_the_interpreter_changes_hands_fast_where_an_engine_runs_and_not_after_it() -> None:
    before = sys.getswitchinterval()
    with pytest.raises(OSError, match="enough"), fast_thread_switching():
        assert sys.getswitchinterval() == pytest.approx(1e-4)
        raise OSError("enough")
    assert sys.getswitchinterval() == before


def test_a_device_that_fails_fails_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def synchronize(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "current_stream", Broken)
    place, base = Workplace.at(tmp_path), tiny_base("llama")
    there = replace(base, device=torch.device("cuda"))  # of which this machine has none
    parts = place.parts(load=lambda: (there, byte_tokenizer()), lease_s=1000)
    job = submit(place, options=OPTIONS)
    with pytest.raises(DeviceLost, match="the device has failed"):
        run_worker(parts, threading.Event())
    assert job_now(place, job).status == JobStatus.RUNNING
    place.queue.abandon(parts.worker_id, "died")
    done = work_off(place, job)
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 2)


def gradient(base: BaseModel) -> torch.Tensor:
    """Through all layers."""
    embedded = torch.linspace(-1, 1, 20 * 48, device=base.device).view(1, 20, 48).requires_grad_()
    base.model(inputs_embeds=embedded).logits.square().mean().backward()
    assert embedded.grad is not None
    return embedded.grad


@pytest.mark.parametrize("device", DEVICES)
def test_both_at_once_compute_what_each_does_alone(device: str) -> None:
    rng, model = random.Random(1), tiny_model("llama")
    prompts = [random_prompt(rng, rng.randint(1, 40), VOCAB) for _ in range(8)]
    expected = [generate(model, prompt, 12) for prompt in prompts]
    torch.nn.Module.to(model, device)
    base = BaseModel.of(model, "tiny")
    beside, within = (
        TrainingThread(base, Pulse(), 1.3, lambda: None),
        high_priority_stream(base.device),
    )
    gradients: list[torch.Tensor] = []
    with within():
        kv = KVCache(base, memory_mb=4, block_tokens=16)
        engine = Engine(Runner(base, None, kv), BlockPool(kv.num_blocks, 16))

    def work(stop: threading.Event) -> None:
        while len(gradients) < 3 or not stop.is_set():
            gradients.append(gradient(beside.base))

    beside.start(work)
    sequences = [make_sequence(number, prompt) for number, prompt in enumerate(prompts)]
    with within():
        engine.finish_mixed(sequences, rng)
    stop(beside)
    assert [sequence.output for sequence in sequences] == expected
    for found in gradients:
        torch.testing.assert_close(found, gradients[0])


@pytest.mark.parametrize("device", DEVICES[1:])
def test_all_of_a_step_comes_after_the_engine_s(device: str) -> None:
    base = tiny_base("llama")
    torch.nn.Module.to(base.model, device)
    beside = TrainingThread(BaseModel.of(base.model, "tiny"), Pulse(), 1.3, lambda: None)
    seen: list[torch.cuda.Stream] = []
    done = threading.Event()

    def work(stop: threading.Event) -> None:
        embedded = torch.randn(1, 8, 48, device=device, requires_grad=True)
        embedded.register_hook(lambda _: seen.append(torch.cuda.current_stream()))
        seen.append(torch.cuda.current_stream())
        beside.base.model(inputs_embeds=embedded).logits.sum().backward()
        done.set()
        stop.wait()

    beside.start(work)
    assert done.wait(60)
    stop(beside)
    with high_priority_stream(torch.device(device))():
        engine = torch.cuda.current_stream()
    assert seen[0] == seen[1] != torch.cuda.default_stream()
    assert engine.priority < seen[0].priority
