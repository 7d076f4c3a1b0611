"""What one owner uses, for the server's admin."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from server.api.adapters.adapter_census import Census
from server.api.app_services import Services
from server.api.organization.limit_use_endpoints import get_limit_use
from server.db.owner_limits import Limits
from server.tenancy.owners import Owner
from server.tenancy.principal import Principal
from server.tenancy.usage.usage_book import DAY_S, Place, Question

_DAYS: Final = 30


@dataclass(frozen=True)
class OwnerUse:
    """`days` are the requests of each of the last 30 days, the oldest first; `windows` the sums of
    today, 7 and 30 days as (what, requests, tokens, training tokens). `adapter_bytes` and `largest`
    are of the last count of all adapters."""

    owner: Owner
    limits: Limits
    used: Mapping[str, int | None]
    days: Sequence[int]
    windows: Sequence[tuple[str, int, int, int]]
    adapter_bytes: int | None
    largest: Sequence[tuple[str, int]]


def owner_use(
    services: Services, admin: Principal, owner: str, counted: Census | None, most: int
) -> OwnerUse:
    """Asks the database. Raises NotFound."""
    found = services.tenants.owners.get(owner)
    told: Any = get_limit_use(services, admin, owner)
    end = int(time.time()) + 1
    first = end // DAY_S * DAY_S - (_DAYS - 1) * DAY_S
    question = Question(first, end, DAY_S, owners=[owner])
    starts, rows, _ = services.tenants.usage.buckets(question, Place(first), _DAYS)
    by_day = {row.start: row for row in rows}
    days = [by_day.get(start) for start in starts]
    windows = []
    for word, length in (("Today (UTC)", 1), ("Last 7 days", 7), ("Last 30 days", _DAYS)):
        some = [row for row in days[-length:] if row is not None]
        tokens = sum(row.prompt + row.completion for row in some)
        training = sum(row.training for row in some)
        windows.append((word, sum(row.requests for row in some), tokens, training))
    held = None if counted is None else counted.bytes.get(owner, 0)
    largest = [] if counted is None else counted.largest(most, owner)
    return OwnerUse(
        owner=found,
        limits=services.tenants.limits.get(owner),
        used={it["name"]: it["used"] for it in told["limits"]},
        days=[0 if row is None else row.requests for row in days],
        windows=windows,
        adapter_bytes=held,
        largest=[(name, counted.sizes[owner, name]) for _, name in largest if counted],
    )
