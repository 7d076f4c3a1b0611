"""The bars of the key check, with room for a loaded machine."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.host import key_check
from server.tenancy.keys import Keys
from tests.benchmarks.running import cells, run


def test_a_key_adds_little_and_is_asked_for_once(tmp_path: Path) -> None:
    database = key_check.opened(f"sqlite:///{tmp_path / 'keys.db'}")
    book = key_check.CountingBook(database)
    texts = key_check.made_keys(book, 20)
    added = asyncio.run(key_check.added_us(Keys("the server's", book), texts, 5000))
    database.close()
    assert 0 < added < 3 * key_check.BAR_US
    assert book.asked == 20


@pytest.mark.slow
def test_it_prints_its_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, key_check, "--keys 3 --requests 300 --revocations 1")
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    measured = {row[0]: float(row[1]) for row in rows[2:]}
    assert measured["questions for a key in its minute"] == 1
    assert 0 <= measured["revocation felt, s: longest"] < 3 * key_check.BAR_REVOCATION_S
