"""An owner's limits as rows of a form."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from server.console.watching.limit_rows import LABELS, amount
from server.db.owner_limits import Limits
from server.errors import InvalidRequest

_WORDS: Final = {**LABELS, "weight": "Weight"}
_HELP: Final = {
    "weight": "Its share of the engine beside others: twice the weight, twice the turns"
}


@dataclass(frozen=True)
class LimitField:
    """One limit. `share` is how much of it is used; None: it is unknown, or there is no limit."""

    name: str
    word: str
    help: str
    limit: str
    used: str
    share: float | None
    value: str  # in the form; empty: the server's own
    default: str


def limit_fields(
    limits: Limits, defaults: Limits, used: Mapping[str, int | None]
) -> Sequence[LimitField]:
    """What is in force beside what is used."""
    ours, theirs = asdict(limits), asdict(defaults)
    return [_row(name, ours[name], theirs[name], used.get(name)) for name in _WORDS]


def _row(name: str, limit: float, default: float, used: int | None) -> LimitField:
    return LimitField(
        name,
        _WORDS[name],
        _HELP.get(name, ""),
        _shown(name, limit),
        "" if used is None else amount(name, used),
        used / limit if used is not None and limit and name != "weight" else None,
        "" if limit == default else f"{limit:g}" if name == "weight" else str(limit),
        _shown(name, default),
    )


def _shown(name: str, limit: float) -> str:
    if name == "weight":
        return f"{limit:g}"
    return amount(name, limit) if limit else "no limit"


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
