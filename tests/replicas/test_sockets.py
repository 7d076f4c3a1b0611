"""The folders of the engines' sockets: private, and removed after a kill."""

import os
import tempfile
from pathlib import Path

import pytest

from server.errors import Unavailable
from server.replicas import replica


def test_a_stopped_replica_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = tmp_path / f"verandah-{os.getuid()}"
    (root / "left-by-a-killed-server").mkdir(parents=True)
    root.chmod(0o700)
    folder = replica._private_folders().make()
    assert [*root.iterdir()] == [folder]
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("kind", ["open to others", "a link"])
def test_a_folder_that_others_may_enter_is_refused_and_left_alone(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = tmp_path / f"verandah-{os.getuid()}"
    target = root if kind == "open to others" else tmp_path / "precious"
    (target / "kept").mkdir(parents=True)
    target.chmod(0o755 if kind == "open to others" else 0o700)
    if target != root:
        root.symlink_to(target)
    with pytest.raises(Unavailable, match=f"others may enter {root}: remove it, or set TMPDIR"):
        replica._private_folders()
    assert (target / "kept").is_dir()
