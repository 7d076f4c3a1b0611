"""Models are fetched whole and verified, or not at all: by the real pip, from a wheel of ours."""

import hashlib
import importlib.util
import os
import shutil
import socket
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from server.bases import fetching
from server.bases.base_place import locate
from server.bases.fetching import fetch
from server.bases.short_names import ShortName, fetched_path, file_of
from server.errors import FetchFailed, UnsupportedModel

CONTENT = bytes(range(256)) * 400


def wheel_of(folder: Path, content: bytes = CONTENT, member: str = "tiny_base/tiny.gguf") -> Path:
    """A wheel of the package tiny-base, which holds one file."""
    info = "tiny_base-1.0.dist-info"
    files = {
        member: content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-base\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / "tiny_base-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return path


def row_of(wheel: Path, content: bytes = CONTENT) -> ShortName:
    return ShortName(
        name="tiny",
        title="a tiny model",
        package="tiny-base",
        version="1.0",
        member="tiny_base/tiny.gguf",
        licence="CC0-1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        file_bytes=len(content),
        file_sha256=hashlib.sha256(content).hexdigest(),
        fingerprint="0" * 32,
    )


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShortName:
    """A model in a wheel that pip finds, and an empty cache."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return row_of(wheel_of(wheels))


@pytest.fixture
def heard() -> mock.Mock:
    return mock.Mock()


def brought(row: ShortName, heard: mock.Mock) -> Path:
    return fetch(row, waiting=heard.waiting, report=heard.report)


def left(row: ShortName) -> list[str]:
    return sorted(path.name for path in fetched_path(row).parent.iterdir())


def by_script(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Instead of pip: a program that knows where to put what it gets."""

    def installer(_row: ShortName, _wanted: Path, into: Path) -> list[str]:
        return [sys.executable, "-c", code, str(into)]

    monkeypatch.setattr(fetching, "_installer", installer)


def test_a_file_comes_whole_and_only_once(
    row: ShortName, heard: mock.Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file_of(row) is None
    path = brought(row, heard)
    assert path == fetched_path(row) == file_of(row)
    assert path.read_bytes() == CONTENT
    assert left(row) == [".lock", "tiny.gguf"]
    assert heard.report.call_args.args == (row.wheel_bytes,)
    by_script(monkeypatch, "raise SystemExit('not again')")
    assert brought(row, heard) == path
    assert not heard.waiting.called


def test_a_damaged_file_is_fetched_again(row: ShortName, heard: mock.Mock) -> None:
    path = brought(row, heard)
    path.write_bytes(CONTENT[:-1])
    assert file_of(row) is None
    assert brought(row, heard).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"wheel_sha256": "a" * 64}, "the index offers another tiny-base==1.0"),
        ({"file_sha256": "a" * 64}, "has SHA-256 "),
        ({"file_bytes": len(CONTENT) - 1}, "has SHA-256 "),
        ({"member": "tiny_base/other.gguf"}, "does not hold tiny_base/other.gguf"),
        ({"version": "2.0"}, "the installer says: ERROR: Could not find a version"),
        ({"package": "no-such-base"}, "no-such-base==1.0"),
    ],
)
def test_what_is_not_the_model_is_not_taken(
    row: ShortName, heard: mock.Mock, wrong: dict[str, object], said: str
) -> None:
    other = replace(row, **wrong)  # type: ignore[arg-type]
    with pytest.raises(FetchFailed) as caught:
        brought(other, heard)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left(row) == [".lock"]


def test_a_wheel_that_is_damaged_is_not_taken(
    row: ShortName, heard: mock.Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_script(
        monkeypatch,
        "import os, sys; os.mkdir(sys.argv[1]); open(sys.argv[1] + '/x.whl', 'w').write('PK')",
    )
    with pytest.raises(FetchFailed, match="is damaged: try again"):
        brought(row, heard)
    assert left(row) == [".lock"]


def test_without_a_network_the_remedy_is_told(
    row: ShortName, heard: mock.Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # nothing listens there from now on
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(FetchFailed, match="the package index does not answer: try again with a"):
        brought(row, heard)
    assert left(row) == [".lock"]


def test_uv_fetches_where_this_python_has_no_pip(
    row: ShortName, heard: mock.Mock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program in uv's place, which unpacks as `uv pip install --target` does."""
    programs = tmp_path / "programs"
    programs.mkdir()
    wheel = next((tmp_path / "wheels").iterdir())
    uv = programs / "uv"
    uv.write_text(
        f"#!{sys.executable}\nimport sys, zipfile\nassert sys.argv[1:3] == ['pip', 'install']\n"
        "into = sys.argv[sys.argv.index('--target') + 1]\n"
        f"zipfile.ZipFile({str(wheel)!r}).extractall(into)\n"
    )
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else find(name)
    )
    assert brought(row, heard).read_bytes() == CONTENT
    assert left(row) == [".lock", "tiny.gguf"]
    fetched_path(row).unlink()
    uv.unlink()
    with pytest.raises(FetchFailed, match="by pip or uv, and neither is here: install one"):
        brought(row, heard)


def test_a_full_disk_is_told_before_anything_is_fetched(
    row: ShortName, heard: mock.Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_script(monkeypatch, "raise SystemExit('too early')")
    usage = mock.Mock(return_value=mock.Mock(free=row.wheel_bytes))
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(FetchFailed, match=r"MB free in .*: make room"):
        brought(row, heard)
    assert left(row) == [".lock"]


def test_a_cache_that_cannot_be_written_is_told(
    row: ShortName, heard: mock.Mock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(FetchFailed, match=r"cannot be written to .*XDG_CACHE_HOME"):
        brought(row, heard)


SLOW = (
    "import os, sys, tempfile, time\n"
    "open(os.path.join(tempfile.gettempdir(), 'half.whl'), 'wb').write(b'x' * 100)\n"
    "open(os.environ['PID'], 'w').write(str(os.getpid()))\n"
    "time.sleep(600)\n"
)


def test_an_interrupted_fetch_leaves_nothing_behind(
    row: ShortName, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by_script(monkeypatch, SLOW)
    monkeypatch.setenv("PID", str(tmp_path / "pid"))

    def report(done: int) -> None:
        if done > 100:  # what stands half is counted
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(row, waiting=lambda: None, report=report)
    assert left(row) == [".lock"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_a_killed_fetch_left_goes_with_the_next(row: ShortName, heard: mock.Mock) -> None:
    dead = fetched_path(row).parent / ".work-dead"
    dead.mkdir(parents=True)
    (dead / "half.whl").write_bytes(b"x")
    brought(row, heard)
    assert left(row) == [".lock", "tiny.gguf"]


def test_of_two_at_once_one_fetches(row: ShortName, monkeypatch: pytest.MonkeyPatch) -> None:
    download, waits, paths = fetching._download, threading.Event(), list[Path]()
    downloads = mock.Mock(side_effect=lambda *given: (waits.wait(60), download(*given)))
    monkeypatch.setattr(fetching, "_download", downloads)

    def run() -> None:
        paths.append(fetch(row, waiting=waits.set, report=lambda _done: None))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert waits.is_set(), "the second says that it waits"
    assert downloads.call_count == 1
    assert paths == [fetched_path(row)] * 2


def test_a_short_name_is_its_file_once_that_is_here(
    row: ShortName, heard: mock.Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.bases.base_place.SHORT_NAMES", {"tiny": row})
    with pytest.raises(UnsupportedModel, match="is not on this machine: `verandah fetch tiny`"):
        locate("tiny")
    path = brought(row, heard)
    assert locate("tiny") == path


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        *(("smollm2-q4", "smollm2-q4_1"), ("SmolLM2_Q4_1", "smollm2-q4_1")),
        *(("smollm2-q4_1.gguf", "smollm2-q4_1"), ("Porch", "porch"), ("porhc", "porch")),
    ],
)
def test_a_short_name_with_an_error_is_not_asked_of_the_hub(source: str, meant: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        locate(source)
    assert str(caught.value).startswith(
        f"base model {source!r} is not there (did you mean {meant}?): give porch, "
    )


@pytest.mark.parametrize("source", ["gpt2", "distilgpt2", "xlm-roberta-base", "me/smollm2-q4"])
def test_what_is_near_no_short_name_is_asked_of_the_hub(source: str) -> None:
    assert locate(source) == source


def test_an_installed_package_will_do(
    row: ShortName, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(next((tmp_path / "wheels").iterdir())) as wheel:
        wheel.extractall(site)
    monkeypatch.syspath_prepend(site)
    assert file_of(row) == site / "tiny_base" / "tiny.gguf"
    (site / "tiny_base" / "tiny.gguf").write_bytes(b"other")
    assert file_of(row) is None
