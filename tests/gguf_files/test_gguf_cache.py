"""GGUF files are converted once, and what was converted is looked after."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from server.bases.base_files import load_stored
from server.bases.gguf_files import gguf_cache
from server.bases.gguf_files.gguf_cache import converted
from server.bases.model import fingerprint_of
from server.errors import UnsupportedModel
from tests.gguf_files.making import Quant, byte_level_vocab, model_for, write_gguf


@pytest.fixture
def file(tmp_path: Path) -> Path:
    vocab = byte_level_vocab()
    return write_gguf(tmp_path / "m.gguf", model_for(vocab), vocab, kind=Quant.Q8_0)


def forbid(patch: pytest.MonkeyPatch, name: str) -> None:
    def called(*_: object) -> Any:
        raise AssertionError(f"{name} is called")

    patch.setattr(gguf_cache, name, called)


def test_a_second_time_nothing_is_read(file: Path, cache: Path) -> None:
    folder = converted(file)
    assert folder.parent == cache
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch, "_digest")
        forbid(patch, "read_header")
        assert converted(file) == folder


def test_a_copy_is_hashed_and_not_converted_again(file: Path, tmp_path: Path) -> None:
    folder = converted(file)
    copy = Path(shutil.copy(file, tmp_path / "copy.gguf"))
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch, "_replacing")
        assert converted(copy) == folder


def test_another_file_under_the_same_name_is_converted(file: Path) -> None:
    folder, before = converted(file), fingerprint_of(load_stored(file))
    vocab = byte_level_vocab()
    write_gguf(file, model_for(vocab, seed=1), vocab, kind=Quant.Q8_0)
    assert converted(file) != folder
    assert fingerprint_of(load_stored(file)) != before


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def overwrite(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-100, 2)
        file.write(bytes(50))


DAMAGES: list[Callable[[Path], object]] = [
    cut,
    overwrite,
    lambda folder: (folder / "tokenizer.json").unlink(),
    lambda folder: (folder / "config.json").write_text("{}"),
    lambda folder: (folder / "converted.json").unlink(),
    lambda folder: (folder / "converted.json").write_text("no JSON"),
    lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": 7}'),
    shutil.rmtree,
]


@pytest.mark.parametrize("damage", range(len(DAMAGES)))
def test_what_is_damaged_is_made_again(file: Path, damage: int) -> None:
    folder = converted(file)
    names = {path.name for path in folder.iterdir()}
    weights = (folder / "model.safetensors").read_bytes()
    DAMAGES[damage](folder)
    assert converted(file) == folder
    assert (folder / "model.safetensors").read_bytes() == weights
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.parametrize("note", ["", "a" * 63, "../" * 21 + "x", "\udc80"])
def test_a_damaged_note_is_not_followed(file: Path, cache: Path, note: str) -> None:
    folder = converted(file)
    (written,) = cache.glob("*.sha256")
    written.write_bytes(note.encode(errors="surrogateescape"))
    assert converted(file) == folder


def test_two_at_once_convert_once(file: Path, cache: Path) -> None:
    made = list[Path]()
    replacing = gguf_cache._replacing

    def noted(place: Path) -> AbstractContextManager[Path]:
        made.append(place)
        return replacing(place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_cache, "_replacing", noted)
        with ThreadPoolExecutor(4) as pool:
            found = set(pool.map(converted, [file] * 4))
    assert list(found) == made
    assert [path for path in cache.iterdir() if path.is_dir()] == made


def test_what_a_killed_process_left_is_removed(file: Path, cache: Path) -> None:
    folder = converted(file)
    left = cache / f"{folder.name}.half"
    left.mkdir()
    cut(folder)
    converted(file)
    assert not left.exists()


def test_a_failure_leaves_nothing(file: Path, cache: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch, "_listing")
        with pytest.raises(AssertionError):
            converted(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_full_disk_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(UnsupportedModel, match=r"0\.0 GB free: make room or set XDG_CACHE_HOME"):
        converted(file)


def test_a_folder_that_cannot_be_written_is_told(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    with pytest.raises(UnsupportedModel, match="set XDG_CACHE_HOME to another folder"):
        converted(file)


def test_outside_a_terminal_one_line_is_said(
    file: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    converted(file)
    converted(file)
    assert capfd.readouterr().err == f"converting m.gguf once, for {cache}\n"


def test_weights_are_kept_in_16_bits(file: Path) -> None:
    numbers = sum(parameter.numel() for parameter in load_stored(file).parameters())
    size = (converted(file) / "model.safetensors").stat().st_size
    assert 2 * numbers < size < 2 * numbers + 16_384
    assert load_stored(file).dtype == torch.bfloat16
