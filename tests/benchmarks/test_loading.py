"""The benchmark of loading, on a tiny shape."""

import pytest

from benchmarks.adapters import loading
from tests.benchmarks.running import cells, run


def test_loading_reports_every_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, loading, "--shape tiny --repeats 1")
    rows = {cells(line)[0]: cells(line)[1:] for line in capsys.readouterr().out.splitlines()}
    for kind in loading.KINDS:
        size, packed, *_ = map(float, rows[kind.label])
        assert size > 0
        assert packed > 0
