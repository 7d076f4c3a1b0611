"""The benchmark against transformers and PEFT, on a tiny shape."""

import sys

import pytest

from benchmarks.serving import rivals
from tests.benchmarks.running import cells, run

ARGUMENTS = "--shape tiny --requests 3 --prompt-tokens 12 --answer-tokens 4 --rounds 1"
OURS = ["Verandah, base", "Verandah, vera r256 all"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Specified to not save vera_A")
def test_rivals_report_every_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, rivals, f"{ARGUMENTS} --peft-requests 1")
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "|"][2:]
    assert [row[0] for row in rows] == [
        *OURS,
        "PEFT, vera r256 all, 1 requests in turn",
        "transformers, continuous batching (sdpa)",
    ]
    rates = [float(row[1].replace(",", "")) for row in rows]
    assert min(rates) > 0
    assert float(rows[0][2]) == pytest.approx(rates[0] / rates[2], rel=0.1)


def test_without_peft_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.support.peft_side", raising=False)
    monkeypatch.setitem(sys.modules, "peft", None)
    run(monkeypatch, rivals, f"{ARGUMENTS} --no-batching")
    out = capsys.readouterr().out
    assert "PEFT is left out" in out
    assert [cells(line)[0] for line in out.splitlines() if line.startswith("| Ver")] == OURS
