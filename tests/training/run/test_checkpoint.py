"""Checkpoints: whole or absent, the newest two, bit for bit."""

import os
import time
from pathlib import Path

import pytest
import torch

from server.training.run.checkpoint import CheckpointFolder, RunCheckpoint, sweep


def make(step: int) -> RunCheckpoint:
    tensors = {"vectors/a": torch.randn(7, 3), "adamw/0/step": torch.tensor(float(step))}
    return RunCheckpoint(step, tensors, {"trained_tokens": step * 10})


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "job")
    assert folder.newest() is None
    saved = make(3)
    folder.save(saved)
    read = folder.newest()
    assert read is not None
    assert (read.step, read.state) == (3, {"trained_tokens": 30})
    assert all(torch.equal(read.tensors[name], saved.tensors[name]) for name in saved.tensors)


def test_the_newest_two_stay(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2, 9, 10, 100):
        folder.save(make(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000010.safetensors",
        "step-00000100.safetensors",
    ]


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"not a checkpoint at all"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, damage: bytes) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(make(1))
    folder.save(make(2)).write_bytes(damage)
    read = folder.newest()
    assert read is not None
    assert read.step == 1


def test_a_file_cut_short_is_not_read(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    path = folder.save(make(1))
    path.write_bytes(path.read_bytes()[:-1])
    assert folder.newest() is None


def test_clear_leaves_nothing(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "job")
    folder.clear()
    folder.save(make(1))
    (tmp_path / "job" / ".half-written").write_bytes(b"x")
    folder.clear()
    assert not (tmp_path / "job").exists()


def test_sweep_removes_what_nobody_touched_for_long(tmp_path: Path) -> None:
    sweep(tmp_path / "not made yet", older_than_s=100)
    for name, age_s in (("old", 200), ("new", 50)):
        CheckpointFolder(tmp_path / name).save(make(1))
        touched = time.time() - age_s
        os.utime(tmp_path / name, (touched, touched))
    sweep(tmp_path, older_than_s=100)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
