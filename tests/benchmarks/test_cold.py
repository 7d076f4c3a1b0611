"""The benchmark of cold adapters, on a tiny shape."""

import pytest

from benchmarks.adapters import cold
from benchmarks.support.live import AnswerTimes
from tests.benchmarks.running import cells, run

ARGUMENTS = (
    "--shape tiny --registered 80 --resident 24 --pairs 3 --streams 3 --answer-tokens 24 "
    "--rounds 1 --per-second 40"
)


def test_cold_reports_first_tokens_and_gaps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, cold, ARGUMENTS)
    rows = {cells(line)[0]: cells(line)[1:] for line in capsys.readouterr().out.splitlines()}
    assert float(rows["warm"][0]) > 0
    more = float(rows["cold"][0]) - float(rows["warm"][0])
    assert more == pytest.approx(float(rows["cold"][2]), abs=0.2)
    assert rows["alone"][-1] == "0"
    assert all(int(rows[load][-1]) > 0 for load in cold.LOADS[1:])


def test_gaps_are_between_tokens_of_one_answer_once_it_runs() -> None:
    answers = [AnswerTimes(0.0, [start + 1.5 * n for n in range(17)]) for start in (1.0, 100.0)]
    assert cold.gaps_of(answers) == [1.5] * (2 * 14)
