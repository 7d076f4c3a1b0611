"""The benchmark of reading prompts, on a tiny shape."""

import pytest

from benchmarks.steps import prefill
from server.engine.sequence import SamplingParams, Sequence
from tests.benchmarks.running import cells, run


def test_prefill_reports_every_width_and_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--shape tiny --prompts 2 --tokens 24 --step-tokens 16 48 --rounds 1"
    run(monkeypatch, prefill, arguments)
    lines = capsys.readouterr().out.splitlines()
    rows = [cells(line)[:2] for line in lines if line.startswith(("| 16 ", "| 48 "))]
    who = ["base", "vera r256 all, 2 distinct", "lora r16 all, 2 distinct"]
    assert rows == [[step, name] for step in ("16", "48") for name in who]


@pytest.mark.parametrize(("step_tokens", "steps"), [(4, 5), (5, 4), (10, 2), (20, 1), (64, 1)])
def test_steps_read_every_token_once_and_are_full_but_for_the_last(
    step_tokens: int, steps: int
) -> None:
    prompts = [Sequence(n, (1,) * 10, SamplingParams(), seed=0) for n in range(2)]
    found = list(prefill.steps_of(prompts, step_tokens))
    lengths = [sum(chunk.length for chunk in chunks) for chunks in found]
    assert len(found) == steps and sum(lengths) == 20
    assert all(length == step_tokens for length in lengths[:-1])
    for prompt in prompts:
        assert sum(c.length for chunks in found for c in chunks if c.sequence is prompt) == 10
