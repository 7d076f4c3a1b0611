"""How long to ask again of a disk that is full. Knows no jobs."""

import time

from safetensors import SafetensorError

DISK_ERRORS = (OSError, SafetensorError)
"""What writing raises: safetensors' own writer wraps what the system says."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0


class DiskRetry:
    """Counts from the first refusal. By the monotonic clock: the other may jump."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._pause = _FIRST_PAUSE_S
        self._first: float | None = None
        self._next = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time to ask, for the first time or again."""
        return time.monotonic() >= self._next

    @property
    def tried(self) -> bool:
        """Whether there was a refusal."""
        return self._first is not None

    @property
    def over(self) -> bool:
        """Whether it has gone on for too long."""
        return self._first is not None and time.monotonic() - self._first >= self.seconds

    def refused(self) -> None:
        """Note a refusal; the pauses between them grow."""
        now = time.monotonic()
        self._first = now if self._first is None else self._first
        self._next, self._pause = now + self._pause, min(2 * self._pause, _LONGEST_PAUSE_S)


def disk_reason(error: Exception) -> str:
    """What the disk said, without the path, which is no user's business."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
