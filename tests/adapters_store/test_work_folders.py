"""Folders for work: several processes share a root, and the living keep theirs."""

import subprocess
import sys
from pathlib import Path

from adapters_store.work_folders import WorkFolders

MAKER = """
import sys
from pathlib import Path
from adapters_store.work_folders import WorkFolders
folders = WorkFolders(Path(sys.argv[1]))
print(folders.make(), flush=True)
sys.stdin.read()
"""


def test_only_what_the_dead_left_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "root"
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(root)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    (theirs / "part").write_text("half")
    (root / "older").mkdir()
    (root / "a file").write_text("x")
    mine = WorkFolders(root).make()
    assert sorted(root.iterdir()) == sorted([theirs, mine]), "what nobody holds is gone"
    process.kill()
    process.communicate()
    folders = WorkFolders(root)
    assert list(root.iterdir()) == [mine], "this process lives"
    with folders.using() as folder:
        (folder / "x").write_text("x")
        WorkFolders(root)
        assert folder.exists()
    assert not folder.exists()


def test_a_root_that_vanished_is_made_anew(tmp_path: Path) -> None:
    folders = WorkFolders(tmp_path / "root")
    (tmp_path / "root").rmdir()
    assert folders.make().is_dir()
