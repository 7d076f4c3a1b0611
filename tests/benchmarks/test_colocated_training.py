"""The benchmark of training while serving, on a tiny shape."""

import pytest

from benchmarks.serving import colocated_training
from benchmarks.serving.colocated_training import trained_per_s
from tests.benchmarks.running import cells, run


def test_every_way_is_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "--streams 2 --answer-tokens 24 --rank 8 --tokens 24 --warming 1 --seconds 0.5"
    asked = "--rounds 1 --times 1 --sides product never"
    run(monkeypatch, colocated_training, f"--shape tiny {small} {asked}")
    text = capsys.readouterr().out
    rows = {cells(line)[0]: cells(line)[1:] for line in text.splitlines() if line[:1] == "|"}
    for name in ("gives way, 1.3 times", "gives way to priority alone"):
        alone, _, training_ms, *_ = map(float, rows[name][:5])
        assert alone > 0
        assert training_ms > 0
    assert "with an idle server" in text


@pytest.mark.parametrize(
    ("begin", "end", "expected"), [(0.0, 2.0, 10.0), (0.5, 1.0, 10.0), (1.5, 3.5, 22.5)]
)
def test_a_step_counts_by_the_part_of_it_within(begin: float, end: float, expected: float) -> None:
    marks = [(0.0, 0), (1.0, 10), (2.0, 20), (3.0, 50), (4.0, 70)]
    assert trained_per_s(marks, begin, end) == pytest.approx(expected)
