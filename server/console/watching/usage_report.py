"""What was used in a period: sums, the busiest groups, and bars. Reads what the API reads."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast

from server.api.organization import usage_endpoints, usage_table
from server.api.organization.access import own_projects
from server.api.organization.usage_table import COUNTS, GROUPS
from server.console.rendering import Page
from server.console.watching.usage_bars import Bars, Series, stacked
from server.db.usage_rows import HOUR_S
from server.errors import InvalidRequest
from server.tenancy.owners import no_such_project
from server.tenancy.usage.usage_book import DAY_S, Group, Question, Used

_MOST_LISTED: Final = 25
_MOST_DRAWN: Final = 8  # groups with a colour; the others share one
_FILTERS: Final = {"model": "models", "key": "api_key_ids", "owner": "project_ids"}
_NOBODY: Final = {
    "owner": "no owner",
    "user": "no user",
    "key": "the server's own key, or none",
    "model": "refused before a model was asked",
}


@dataclass(frozen=True)
class Period:
    """So many hours or days up to now."""

    key: str
    title: str
    width: Literal["1h", "1d"]
    buckets: int

    @property
    def seconds(self) -> int:
        return HOUR_S if self.width == "1h" else DAY_S

    def start(self, now: float) -> int:
        """When the first bucket begins."""
        return int(now) // self.seconds * self.seconds - (self.buckets - 1) * self.seconds


PERIODS: Final = (
    Period("24h", "24 hours", "1h", 24),
    Period("7d", "7 days", "1d", 7),
    Period("30d", "30 days", "1d", 30),
)


@dataclass(frozen=True)
class Asked:
    """What somebody wants to see: a period, grouped `by` something, of an owner or (None) all."""

    period: Period
    by: Group
    owner: str | None

    @classmethod
    def of(cls, page: Page, period: str, by: str, owner: str) -> "Asked":
        """Check what a form has sent.

        Raises:
            InvalidRequest: there is no such period or group.
            NotFound: the owner is another's.
        """
        found = next((it for it in PERIODS if it.key == period), None)
        if found is None:
            keys = ", ".join(it.key for it in PERIODS)
            raise InvalidRequest(f"period {period[:50]!r} is not one of {keys}", param="period")
        if by not in groups_of(page):
            known = ", ".join(groups_of(page))
            raise InvalidRequest(f"by {by[:50]!r} is not one of {known}", param="by")
        if owner and owner != page.owner and not page.known.server_admin:
            raise no_such_project(owner)
        whose = owner or (None if page.known.server_admin else page.owner)
        return cls(found, cast(Group, by), whose)

    @property
    def groups(self) -> Sequence[Group]:
        """What is counted apart: two owners' models of one name are two."""
        return (self.by,) if self.owner or self.by == "owner" else ("owner", self.by)

    @property
    def query(self) -> Mapping[str, str]:
        """The same as fields of an address."""
        return {"period": self.period.key, "by": self.by, "owner": self.owner or ""}


def groups_of(page: Page) -> Sequence[str]:
    """What this principal may group by."""
    return ("model", "key", "owner") if page.known.server_admin else ("model", "key")


@dataclass(frozen=True)
class Sums:
    """What a group, or an hour or day, used. `look` colours it in the drawing."""

    name: str
    look: str
    requests: int = 0
    refused: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    training: int = 0
    owner: str = ""


@dataclass(frozen=True)
class Report:
    """All that the page shows. `more`: groups were left out, which the CSV has."""

    asked: Asked
    total: Sums
    groups: Sequence[Sums]
    more: bool
    buckets: Sequence[Sums]
    requests: Bars
    tokens: Bars

    @property
    def shows_owners(self) -> bool:
        """Whether the groups' owners differ, and are not the groups themselves."""
        return self.asked.by != "owner" and len({it.owner for it in self.groups}) > 1


def report(page: Page, asked: Asked) -> Report:
    """Three questions, however many groups there are: the sums of each bucket, the busiest groups,
    and the buckets of those that are drawn."""
    now = time.time()
    found = page.services.tenants.usage.ranked(_question(page, asked, now), _MOST_LISTED + 1)
    listed = found[:_MOST_LISTED]
    names = _names(page, asked, listed)
    groups = [
        _sums(name, [_result(used)], _look(asked, used, at), used)
        for at, (used, name) in enumerate(zip(listed, names, strict=True))
    ]
    buckets = _ask(page, asked, now)["data"]
    per_bucket = {
        it["start_time"]: _sums(_title(asked.period, it["start_time"]), it["results"])
        for it in buckets
    }
    drawn = _drawn(page, asked, now, listed[:_MOST_DRAWN])
    return Report(
        asked,
        _sums("All", [result for bucket in buckets for result in bucket["results"]]),
        groups,
        len(found) > _MOST_LISTED,
        [*per_bucket.values()],
        _bars(per_bucket, groups, drawn, ("requests",), with_refused=True),
        _bars(per_bucket, groups, drawn, ("prompt", "completion")),
    )


async def csv_pages(page: Page, asked: Asked) -> AsyncIterator[str]:
    """What `verandah usage --csv` prints, a page of the API's at a time."""
    head = [usage_table.columns(asked.groups)]
    following: str | None = ""
    now, hourly = time.time(), asked.period.width == "1h"
    while following is not None:
        found = await page.services.threads.reading.run(
            _ask, page, asked, now, asked.groups, following or None
        )
        rows = usage_table.rows(found["data"], asked.groups, hourly=hourly)
        yield usage_table.csv_text([*head, *rows])
        head, following = [], found["next_page"]


def _ask(
    page: Page,
    asked: Asked,
    now: float,
    groups: Sequence[Group] = (),
    following: str | None = None,
    **only: Sequence[str],
) -> dict[str, Any]:
    """The API's answer. `only`: its filters."""
    owners = None if asked.owner is None else [asked.owner]
    filters: dict[str, Any] = {"project_ids": owners, **only}
    return usage_endpoints.get_usage(
        page.services,
        page.known,
        start_time=asked.period.start(now),
        end_time=int(now) + 1,
        bucket_width=asked.period.width,
        group_by=[cast(Any, GROUPS[name]) for name in groups],
        limit=asked.period.buckets,
        page=following,
        **filters,
    )


def _question(page: Page, asked: Asked, now: float) -> Question:
    return Question(
        start=asked.period.start(now),
        end=int(now) + 1,
        width=asked.period.seconds,
        group_by=asked.groups,
        owners=own_projects(page.known, None if asked.owner is None else [asked.owner]),
    )


def _result(used: Used) -> Mapping[str, int]:
    """The counts of a group under the API's names."""
    ours = {"refused": "refusals"}
    return {field: getattr(used, ours.get(name, name)) for name, field in COUNTS.items()}


def _sums(
    name: str, results: Sequence[Mapping[str, Any]], look: str = "", of: Used | None = None
) -> Sums:
    sums = {count: sum(it[field] for it in results) for count, field in COUNTS.items()}
    return Sums(name, look, **sums, owner=(of and of.owner) or "")


def _look(asked: Asked, used: Used, at: int) -> str:
    if asked.by == "model" and not used.model:  # refused: no model was asked
        return "fill-refused"
    return f"fill-{at + 1}" if at < _MOST_DRAWN else "fill-rest"


def _names(page: Page, asked: Asked, listed: Sequence[Used]) -> Sequence[str]:
    """What people call the groups."""
    ids = [getattr(used, asked.by) or "" for used in listed]
    labels: Mapping[str, str] = {}
    if asked.by == "key":
        labels = page.services.tenants.keys.names([key for key in ids if key])
    return [labels.get(each, each) or _NOBODY[asked.by] for each in ids]


def _drawn(
    page: Page, asked: Asked, now: float, groups: Sequence[Used]
) -> Sequence[Mapping[int, Mapping[str, Any]]]:
    """The API's results of each of a few groups, by the start of the bucket."""
    if not groups:
        return ()
    found: dict[tuple[str, ...], dict[int, Mapping[str, Any]]] = {
        _ids(it, asked.groups): {} for it in groups
    }
    only: dict[str, Any] = {_FILTERS[asked.by]: [_ids(it, [asked.by])[0] for it in groups]}
    if "owner" in asked.groups:
        only["project_ids"] = sorted({it.owner or "" for it in groups})
    for bucket in _ask(page, asked, now, asked.groups, **only)["data"]:
        for result in bucket["results"]:
            group = tuple(result[GROUPS[name]] or "" for name in asked.groups)
            if group in found:
                found[group][bucket["start_time"]] = result
    return [*found.values()]


def _ids(used: Used, groups: Sequence[Group]) -> tuple[str, ...]:
    return tuple(getattr(used, name) or "" for name in groups)


def _bars(
    buckets: Mapping[int, Sums],
    groups: Sequence[Sums],
    drawn: Sequence[Mapping[int, Mapping[str, Any]]],
    counts: Sequence[str],
    *,
    with_refused: bool = False,
) -> Bars:
    """Bars of the sums of these counts: each group that is drawn, and all others together."""
    series = [
        Series(group.name, group.look, [_of(of.get(start), counts) for start in buckets])
        for group, of in zip(groups, drawn, strict=False)
    ]
    known = [sum(each.values[at] for each in series) for at in range(len(buckets))]
    rest = [
        sum(getattr(sums, name) for name in counts) - part
        for sums, part in zip(buckets.values(), known, strict=True)
    ]
    series.append(Series("others", "fill-rest", [max(each, 0) for each in rest]))
    if with_refused:
        refused = [sums.refused for sums in buckets.values()]
        series.append(Series("refused", "fill-refused", refused))
    return stacked([sums.name for sums in buckets.values()], series)


def _of(result: Mapping[str, Any] | None, counts: Sequence[str]) -> int:
    return 0 if result is None else sum(result[COUNTS[name]] for name in counts)


def _title(period: Period, start: int) -> str:
    """What people call the hour or the day that begins then."""
    form = "%d %b, %H:%M" if period.width == "1h" else "%a %d %b"
    return datetime.fromtimestamp(start, UTC).strftime(form)
