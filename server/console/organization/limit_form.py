"""An owner's limits as rows of a form."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from server.console.rendering import count, size
from server.db.owner_limits import Limits
from server.errors import InvalidRequest

_WORDS: Final = {
    "requests_a_minute": "Requests a minute",
    "tokens_a_minute": "Tokens a minute",
    "requests_at_once": "Requests at once",
    "adapters": "Adapters",
    "files": "Files",
    "stored_bytes": "Bytes of files and adapters",
    "running_jobs": "Jobs that train",
    "waiting_jobs": "Jobs that wait or are paused",
    "training_tokens_a_day": "Training tokens a day",
    "weight": "Weight",
}
_HELP: Final = {
    "weight": "Its share of the engine beside others: twice the weight, twice the turns"
}


@dataclass(frozen=True)
class LimitRow:
    """One limit. `share` is how much of it is used; None: it is unknown, or there is no limit."""

    name: str
    word: str
    help: str
    limit: str
    used: str
    share: float | None
    value: str  # in the form; empty: the server's own
    default: str


def limit_rows(
    limits: Limits, defaults: Limits, used: Mapping[str, int | None]
) -> Sequence[LimitRow]:
    """What is in force beside what is used."""
    ours, theirs = asdict(limits), asdict(defaults)
    return [_row(name, ours[name], theirs[name], used.get(name)) for name in _WORDS]


def _row(name: str, limit: float, default: float, used: int | None) -> LimitRow:
    return LimitRow(
        name,
        _WORDS[name],
        _HELP.get(name, ""),
        _shown(name, limit),
        "" if used is None else _amount(name, used),
        used / limit if used is not None and limit and name != "weight" else None,
        "" if limit == default else f"{limit:g}" if name == "weight" else str(limit),
        _shown(name, default),
    )


def _shown(name: str, limit: float) -> str:
    if name == "weight":
        return f"{limit:g}"
    return _amount(name, limit) if limit else "no limit"


def _amount(name: str, number: float) -> str:
    return size(number) if name == "stored_bytes" else count(number)


def sent_limits(
    fields: Mapping[str, str], now: Mapping[str, float], defaults: Mapping[str, float]
) -> dict[str, Any]:
    """The limits that a form changes; None: the server's own again. Raises InvalidRequest."""
    changed: dict[str, Any] = {}
    for name in _WORDS:
        text = fields.get(name, "").strip().replace(",", "")
        value = _number(name, text) if text else None
        if (defaults[name] if value is None else value) != now[name]:
            changed[name] = value
    return changed


def _number(name: str, text: str) -> float | int:
    try:
        return float(text) if name == "weight" else int(text[:20])
    except ValueError:
        raise InvalidRequest(
            f"{_WORDS[name]}: {text[:40]!r} is not a number: give one, 0 for no limit, or leave it "
            "empty for the server's own",
            param=name,
        ) from None
