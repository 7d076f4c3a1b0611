"""The benchmark of steps with a prompt in them, on a tiny shape."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.steps import mixed_step


def test_both_sides_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--shape tiny --device cpu --rows 2 --prompts 0 3 --steps 1 --rounds 1"
    monkeypatch.setattr("sys.argv", ["mixed", *options.split()])
    mixed_step.main()
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith(("| base", "| vera"))]
    assert len(rows) == 4
    assert all(float(row.split("|")[3].replace(",", "")) > 0 for row in rows)
