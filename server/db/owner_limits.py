"""What an owner may use: the server's limits for each owner, and where its own row differs."""

from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy.orm import Session

from server.db.tenancy_tables import LimitRow


@dataclass(frozen=True)
class Limits:
    """What one owner may use; 0: as much as it likes.

    `weight` is its share of the engine beside others, see `server.scheduler.turns`.
    """

    requests_a_minute: int = 0
    tokens_a_minute: int = 0
    requests_at_once: int = 0
    adapters: int = 0
    files: int = 0
    stored_bytes: int = 0
    running_jobs: int = 0
    waiting_jobs: int = 0
    training_tokens_a_day: int = 0
    weight: float = 1.0

    def with_row(self, row: LimitRow | None) -> "Limits":
        """These, but for what an owner's row says."""
        if row is None:
            return self
        values: dict[str, Any] = {name: getattr(row, name) for name in LIMIT_NAMES}
        own = {name: value for name, value in values.items() if value is not None}
        return Limits(**{name: own.get(name, getattr(self, name)) for name in LIMIT_NAMES})


LIMIT_NAMES = tuple(field.name for field in fields(Limits))


def limits_of(session: Session, owner: str, defaults: Limits) -> Limits:
    """What the owner may use at this moment."""
    return defaults.with_row(session.get(LimitRow, owner))
