"""The lock in requirements/ is whole, and it goes with pyproject.toml."""

import importlib.metadata
import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from requirements.update import Lock, moved, parsed, split, versions

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUN = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
FILES = sorted((ROOT / "requirements").glob("*.txt"))
LOCKS = {path.stem: parsed(path.read_text()) for path in FILES}
# torch names the versions of these itself, and its CPU builds do without them.
WITH_CUDA = ("cuda", "nvidia", "triton")


def unmet(requirements: list[str], *files: str) -> list[str]:
    """Those of `requirements` that no entry of `files` meets."""
    locked = versions({name: LOCKS[name] for name in files})
    return [
        f"{text} (locked: {version})"
        for text in requirements
        for one in [Requirement(text)]
        for version in [locked.get(one.name.lower(), "nothing")]
        if version == "nothing" or not all(one.specifier.contains(v) for v in version.split(", "))
    ]


def test_there_is_a_file_for_every_extra_and_none_too_many() -> None:
    assert set(LOCKS) == {"run", "torch", "uv", *EXTRAS}, "run `make lock`"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_but_torch_have_hashes_and_nothing_names_a_place(path: Path) -> None:
    hashed = {first: "--hash=sha256:" in entry for first, entry in LOCKS[path.stem].items()}
    assert hashed
    assert all("==" in first for first in hashed)
    assert set(hashed.values()) == {path.stem != "torch"}
    assert "/" not in path.read_text()


def test_torch_is_locked_by_its_version_alone() -> None:
    assert [first.partition("==")[0] for first in LOCKS["torch"]] == ["torch"]
    assert not any(
        first.startswith("torch==")
        for lock in LOCKS.values()
        for first in lock
        if lock is not LOCKS["torch"]
    )


def test_what_the_project_needs_is_locked_at_a_version_that_its_range_allows() -> None:
    assert not unmet([*RUN, *PROJECT["build-system"]["requires"]], "run", "torch"), (
        "run `make lock`"
    )


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_an_extra_needs_is_locked_at_a_version_that_its_range_allows(extra: str) -> None:
    assert not unmet(EXTRAS[extra], "run", "torch", extra), "run `make lock`"


def test_what_torch_needs_is_locked_as_well() -> None:
    installed = importlib.metadata.version("torch").partition("+")[0]
    if f"torch=={installed}" not in LOCKS["torch"]:
        pytest.skip(f"torch {installed} is installed, which is not the one that is locked")
    needs = [
        text
        for text in importlib.metadata.requires("torch") or ()
        for one in [Requirement(text)]
        if not one.name.startswith(WITH_CUDA)
        and (one.marker is None or one.marker.evaluate({"extra": ""}))
    ]
    assert needs
    assert not unmet(needs, "run"), "name it in requirements/uv.toml, then run `make lock`"


def lock(*firsts: str) -> Lock:
    return parsed("# made\n" + "".join(f"{first} \\\n    --hash=sha256:0\n" for first in firsts))


def test_an_extra_holds_what_it_adds_and_torch_has_no_hash() -> None:
    run = lock("numpy==2.4", "torch==2.13.0", "colorama==0.4 ; sys_platform == 'win32'")
    extra = lock("numpy==2.4", "torch==2.13.0", "colorama==0.4", "peft==0.21")
    files = split(run, {"dev": extra})
    assert list(files["run"]) == ["numpy==2.4", "colorama==0.4 ; sys_platform == 'win32'"]
    assert files["run"]["numpy==2.4"] == "numpy==2.4 \\\n    --hash=sha256:0\n"
    assert files["torch"] == {"torch==2.13.0": "torch==2.13.0\n"}
    assert list(files["dev"]) == ["colorama==0.4", "peft==0.21"]


def test_it_is_said_what_moved_and_what_came_and_went() -> None:
    old = versions({"run": lock("a==1", "b==1"), "dev": lock("c==1 ; python_version < '3.12'")})
    new = versions({"run": lock("a==2", "b==1"), "dev": lock("d==1")})
    assert moved(old, new) == ["a 1 -> 2", "c 1 -> no longer locked", "d was not locked -> 1"]


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """An interpreter that installs nothing and writes down what it was asked for."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" >> "$0.log"\ncase "$*" in *$REFUSED*) exit 1 ;; esac\n')
    python.chmod(0o755)
    return python


def install(python: Path, refused: str, index: str = "") -> tuple[list[str], str]:
    """What the script asks of `python`, which fails where `refused` is named, and what it says."""
    script = ROOT / "requirements" / "install.sh"
    environment = {**os.environ, "REFUSED": refused, "TORCH_INDEX": index}
    done = subprocess.run(
        [script, python, "dev"], env=environment, capture_output=True, text=True, check=True
    )
    return (python.parent / "python.log").read_text().splitlines(), done.stderr


def test_uv_installs_all_but_torch(stand_in: Path) -> None:
    asked, said = install(stand_in, refused="nothing", index="some-index")
    by_uv = [line for line in asked if line.startswith("-m uv pip install")]
    by_pip = [line for line in asked if line.startswith("-m pip install")]
    assert ["run.txt" in line and "dev.txt" in line for line in by_uv] == [True, False]
    assert ["uv.txt" in line for line in by_pip] == [True, False]
    assert "--index-url some-index" in by_pip[1] and "torch.txt" in by_pip[1]
    assert said == ""


@pytest.mark.parametrize("refused", ["uv.txt", "-m uv"])
def test_where_uv_cannot_pip_installs_from_the_lock_and_says_so(
    stand_in: Path, refused: str
) -> None:
    asked, said = install(stand_in, refused)
    by_pip = [line for line in asked if line.startswith("-m pip install")]
    assert ["run.txt" in line and "dev.txt" in line for line in by_pip] == [
        False,
        True,
        False,
        False,
    ]
    assert all("--require-hashes" in line for line in by_pip[:2])
    assert "which takes longer" in said
