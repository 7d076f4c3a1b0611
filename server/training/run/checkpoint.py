"""The state of a run on disk. Knows files and tensors, and nothing of what they mean.

    <folder>/step-00000120.safetensors     tensors, and the rest as one JSON text in the header

A checkpoint is complete or absent: written under another name, synced, renamed. Two processes may
write to one folder (a worker that lost its lease and does not know it yet), but the same bytes.
"""

import contextlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_NAME = re.compile(r"step-(\d{8})\.safetensors")
_STATE = "state"
LEFTOVER_AGE_S: Final = 3600
"""Files of ended jobs: a worker that lost its lease may still write to them for so long."""


@dataclass(frozen=True)
class RunCheckpoint:
    """A run after `step`: its tensors, and its numbers (anything JSON holds)."""

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, object]


class CheckpointFolder:
    """The checkpoints of one run in `folder`; the newest `keep` stay."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, checkpoint: RunCheckpoint) -> Path:
        """Write one; it is on the disk when this returns."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step-{checkpoint.step:08d}.safetensors"
        draft = self._folder / f".{uuid.uuid4().hex}"
        try:
            named = checkpoint.tensors.items()
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named}
            save_file(tensors, draft, {_STATE: json.dumps(dict(checkpoint.state))})
            _sync(draft)
            os.replace(draft, path)
            _sync(self._folder)
        finally:
            draft.unlink(missing_ok=True)
        for old in self._paths()[: -self._keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> RunCheckpoint | None:
        """Read the newest that can be read whole; None if there is none."""
        for path in reversed(self._paths()):
            with contextlib.suppress(SafetensorError, OSError, ValueError, KeyError):
                return _read(path)
        return None

    def clear(self) -> None:
        """Remove all of them, and what a killed writer left; the folder too if it is then empty."""
        with contextlib.suppress(FileNotFoundError):
            for path in [*self._paths(), *self._folder.glob(".*")]:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _paths(self) -> list[Path]:
        """Oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))


def sweep(folder: Path, *, older_than_s: float, keep: Container[str] = ()) -> None:
    """Remove entries of `folder` that nothing has written to for so long, except those in `keep`.

    They are of jobs that were cancelled while no worker had them. A run that still needs one starts
    over.
    """
    oldest = time.time() - older_than_s
    for entry in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # gone already, or not ours to remove
            if entry.stem not in keep and entry.stat().st_mtime < oldest:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _read(path: Path) -> RunCheckpoint:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()[_STATE])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return RunCheckpoint(int(match[1]), tensors, state)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
