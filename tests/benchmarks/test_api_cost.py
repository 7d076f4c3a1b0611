"""The made-up engine gives what it was told to, and a request's CPU time is found."""

import argparse
import threading

import pytest

from benchmarks.host.api_cost import SimulatedLoop, measure
from server.engine.sequence import FinishReason, SamplingParams
from server.scheduler.request import CallbackListener, Generation, TextDelta


def test_a_made_up_answer_has_all_its_tokens() -> None:
    heard: list[TextDelta] = []
    done = threading.Event()

    def listen(delta: TextDelta) -> None:
        heard.append(delta)
        if delta.finish is not None:
            done.set()

    loop = SimulatedLoop(burst=3, pace_s=0.001)
    loop.submit(Generation("r", "o", (1,), SamplingParams(max_tokens=7)), CallbackListener(listen))
    assert done.wait(5)
    assert len(heard) == 7
    assert [delta.finish for delta in heard] == [None] * 6 + [FinishReason.LENGTH]


@pytest.mark.slow
def test_a_requests_cpu_time_is_found() -> None:
    options = argparse.Namespace(
        streams=2, prompt_tokens=8, answer_tokens=6, warm_up=0.3, seconds=1.0, pace=0.02
    )
    milliseconds, chunks = measure(options, False, 2)
    assert milliseconds > 0
    assert chunks == pytest.approx(3, abs=0.5)
