"""The exports that are on the disk until their clients have read them: how many, and how large.

Knows no formats and no files.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from server.errors import QueueFull

MAX_EXPORTS: Final = 8
MAX_EXPORTS_OF_OWNER: Final = 6
_RETRY_AFTER_S = 30.0
_MIB = 2**20


@dataclass(frozen=True)
class _Held:
    owner: str
    size: int


class HeldExports:
    """Counts exports from before they are made until they are removed. Thread-safe.

    Args:
        max_bytes: of all together. A single one may be larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: dict[Path, _Held] = {}
        self._lock = threading.Lock()

    def enter(self, folder: Path, owner: str, size: int) -> None:
        """Count an export that will take about `size` bytes. Raises QueueFull."""
        with self._lock:
            held = [*self._held.values()]
            mine = sum(one.owner == owner for one in held)
            if mine >= MAX_EXPORTS_OF_OWNER or len(held) >= MAX_EXPORTS:
                raise _full(
                    f"{mine} exports of yours and {len(held)} in all are made or sent, of at most "
                    f"{MAX_EXPORTS_OF_OWNER} and {MAX_EXPORTS}"
                )
            taken = sum(one.size for one in held)
            if held and taken + size > self._max_bytes:
                raise _full(
                    f"exports that are made or sent take {taken // _MIB} MiB of the disk, and this "
                    f"one would take {size // _MIB} more, of at most {self._max_bytes // _MIB}"
                )
            self._held[folder] = _Held(owner, size)

    def resize(self, folder: Path, size: int) -> None:
        """Note how large an export has become."""
        with self._lock:
            self._held[folder] = _Held(self._held[folder].owner, size)

    def leave(self, folder: Path) -> None:
        """An export was removed."""
        with self._lock:
            self._held.pop(folder, None)


def _full(reason: str) -> QueueFull:
    return QueueFull(
        f"{reason}: read those to their end or close their connections, and try again",
        retry_after_s=_RETRY_AFTER_S,
    )
