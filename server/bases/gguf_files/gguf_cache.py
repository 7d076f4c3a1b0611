"""GGUF files converted once, each into a folder that transformers reads.

The folders lie in `$XDG_CACHE_HOME/verandah/gguf`, or in `~/.cache/verandah/gguf`, and are named by
the SHA-256 of the file. All of it may be deleted: what is missing is made again.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from server.bases.cache_folder import cache_folder
from server.bases.gguf_files.gguf_config import config_of
from server.bases.gguf_files.gguf_header import read_header
from server.bases.gguf_files.gguf_tokenizer import end_ids, tokenizer_of
from server.bases.gguf_files.gguf_weights import Moved, WeightPlan, rotary_factors
from server.errors import UnsupportedModel

_RULES: Final = 1  # one more whenever a file would be converted into something else
_LIST: Final = "converted.json"  # written last: the files of the folder, by size and time
_SPARE: Final = 64 * 2**20  # bytes for the tokenizer and the configuration
_BLOCK: Final = 2**20


def converted_folder() -> Path:
    """Where converted files are kept."""
    return cache_folder() / "gguf"


def converted(file: Path) -> Path:
    """The folder of a GGUF file's model. Converts the file if that was not done, or is damaged.

    Raises:
        UnsupportedModel: the file cannot be read or converted; one sentence says why.
    """
    cache = converted_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        place = _known(cache, file)
        if place is not None and _whole(place):
            return place
        return _convert(cache, file)
    except OSError as error:
        raise UnsupportedModel(
            f"GGUF file {file.name!r} cannot be converted into {str(cache)!r}: "
            f"{error.strerror or error}; make room or set XDG_CACHE_HOME to another folder"
        ) from error


def _known(cache: Path, file: Path) -> Path | None:
    """Where the file was converted to, if this very file was hashed before."""
    try:
        digest = _note(cache, file).read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return _place(cache, digest) if len(digest) == 64 and digest.isalnum() else None


def _note(cache: Path, file: Path) -> Path:
    """The note of the file's hash, under a name that changes whenever the file does."""
    real = file.resolve()
    stat = real.stat()
    facts = (str(real), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return cache / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.sha256"


def _place(cache: Path, digest: str) -> Path:
    return cache / f"{digest}-{_RULES}"


def _whole(place: Path) -> bool:
    """Whether the folder holds what was written into it, going by sizes and times."""
    try:
        listed = json.loads((place / _LIST).read_text())
        return bool(listed) and listed == _listing(place)
    except (OSError, ValueError):
        return False


def _listing(place: Path) -> dict[str, list[int]]:
    stats = {path.name: path.stat() for path in sorted(place.iterdir()) if path.name != _LIST}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _convert(cache: Path, file: Path) -> Path:
    header = read_header(file)  # bad files are refused before they are hashed
    config = config_of(header, rotary_factors(header))
    plan = WeightPlan(header, config)
    tokenizer = tokenizer_of(header)
    note = _note(cache, file)
    with _bar(file) as moved:
        place = _place(cache, _digest(file, moved(file.stat().st_size)))
        with _only_one(cache / f"{place.name}.lock"):
            if not _whole(place):
                _clear(place)
                _check_room(cache, plan)
                with _replacing(place) as folder:
                    config["eos_token_id"] = end_ids(header) or None
                    config["bos_token_id"] = tokenizer.bos_token_id
                    config["pad_token_id"] = tokenizer.pad_token_id
                    (folder / "config.json").write_text(json.dumps(config, indent=2))
                    tokenizer.save_pretrained(folder)
                    plan.write(folder / "model.safetensors", moved(plan.size))
                    (folder / _LIST).write_text(json.dumps(_listing(folder)))
    _write_note(note, place.name[:64])
    return place


def _digest(file: Path, moved: Moved) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while block := data.read(_BLOCK):
            digest.update(block)
            moved(len(block))
    return digest.hexdigest()


def _check_room(cache: Path, plan: WeightPlan) -> None:
    free, needed = shutil.disk_usage(cache).free, plan.size + _SPARE
    if free < needed:
        raise UnsupportedModel(
            f"the dequantised weights take {needed / 1e9:.1f} GB, and {str(cache)!r} has "
            f"{free / 1e9:.1f} GB free: make room or set XDG_CACHE_HOME to another folder"
        )


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Wait until no other process converts the same file."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _replacing(place: Path) -> Iterator[Path]:
    """A new folder that takes the place of the old one, if there is one, when it is whole."""
    folder = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    try:
        yield folder
        for path in folder.iterdir():
            with path.open("rb") as written:
                os.fsync(written.fileno())
        if place.exists():
            shutil.rmtree(place)
        folder.rename(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clear(place: Path) -> None:
    """Remove what processes left that were killed while they converted."""
    for left in place.parent.glob(f"{place.name}.*"):
        if left.is_dir():
            shutil.rmtree(left)


def _write_note(note: Path, digest: str) -> None:
    part = note.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    part.write_text(digest)
    part.replace(note)


@contextmanager
def _bar(file: Path) -> Iterator[Callable[[int], Moved]]:
    """A progress bar on a terminal, and a line elsewhere: what it gives adds a stage."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"converting {file.name} once, for {converted_folder()}", file=sys.stderr)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    progress = Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )

    def stage(size: int) -> Moved:
        verb = "converting" if progress.tasks else "reading"
        task = progress.add_task(f"{verb} {file.name}", total=size)
        return lambda count: progress.advance(task, count)

    with progress:
        yield stage
