"""An owner's limits as rows for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from server.console.rendering import count, size

LABELS: Final = {
    "requests_a_minute": "Requests a minute",
    "tokens_a_minute": "Tokens a minute",
    "requests_at_once": "Requests at once",
    "adapters": "Adapters",
    "files": "Files",
    "stored_bytes": "Bytes of files and adapters",
    "running_jobs": "Jobs that train",
    "waiting_jobs": "Jobs that wait or are paused",
    "training_tokens_a_day": "Training tokens a day",
}
_NEARLY: Final = 0.8


@dataclass(frozen=True)
class ShownLimit:
    """A limit in words. `share` of it is used; None: no limit, or not counted."""

    label: str
    used: str
    limit: str
    share: float | None

    @property
    def state(self) -> str:
        """What to say of it, if anything."""
        if self.share is None or self.share < _NEARLY:
            return ""
        return "used up" if self.share >= 1 else "nearly used up"


def limit_rows(document: dict[str, Any]) -> Sequence[ShownLimit]:
    """Rows of the API's answer."""
    return [_row(it["name"], it["used"], it["limit"]) for it in document["limits"]]


def amount(name: str, number: float) -> str:
    """A number of what a limit counts, as people read it."""
    return size(number) if name == "stored_bytes" else count(number)


def _row(name: str, used: int | None, limit: int | None) -> ShownLimit:
    return ShownLimit(
        LABELS.get(name, name.replace("_", " ")),
        "not counted" if used is None else amount(name, used),
        "no limit" if limit is None else amount(name, limit),
        None if used is None or limit is None else used / limit,
    )
