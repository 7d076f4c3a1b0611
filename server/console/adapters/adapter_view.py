"""All that the page of one adapter shows. Knows no template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from adapters_store.manifest import AdapterRef
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound
from server.api.adapters.adapter_endpoints import Entry, entry_of, header_of
from server.api.app_services import Services
from server.api.model_lookup import find_adapter, listed_id
from server.console.adapters.adapter_usage import AdapterUsage, usage_of
from server.console.adapters.lineage import Step, lineage_of
from server.console.rendering import Page
from server.jobs.queue.evaluation import WORSE
from server.jobs.queue.job import Job
from server.tenancy.shares import Share
from server.tenancy.visibility import visible

MOST_ROWS: Final = 20
_MOST_SHARES: Final = 50
_MOST_JOBS: Final = 20
_DENSE: Final = ("randlora",)  # methods whose analysis takes seconds for each linear
_QUICK_BYTES: Final = 1_000_000


@dataclass(frozen=True)
class Places:
    """Where the parts of a page begin: at the versions below these numbers, and behind a share."""

    versions: int | None = None
    checkpoints: int | None = None
    shares: str | None = None


@dataclass(frozen=True)
class VersionRow:
    """One version in a table. `header` is what the API shows of it, or has an `error`."""

    id: str
    version: int
    latest: bool
    header: Mapping[str, object]

    @property
    def origin(self) -> Mapping[str, str]:
        """Where it comes from; empty for another owner's."""
        return cast(Mapping[str, str], self.header.get("provenance", {}))

    @property
    def verdict(self) -> str:
        """Its loss on held-out lines beside the base's: "better", "worse", or "" if not known."""
        try:
            own, base = (float(self.origin[key]) for key in ("valid_loss", "base_valid_loss"))
        except (KeyError, ValueError):
            return ""
        return "worse" if own > WORSE * base else "better"


@dataclass(frozen=True)
class Rows:
    """Some versions, the newest first; `more` is the number below which there are others."""

    shown: Sequence[VersionRow]
    total: int
    more: int | None


@dataclass(frozen=True)
class AdapterView:
    """One adapter as somebody may see it.

    Attributes:
        id: as the address names it; `name` is without the version.
        whole: the address names no version, so what is done is done to all of them.
        home: the id of the whole adapter; None if the bare name means no version.
        entry: what the API shows of the version.
        may: what somebody may do with it: "own", "copy" or "use".
        quick: its analysis is there, or takes a moment.
    """

    id: str
    name: str
    whole: bool
    home: str | None
    ref: AdapterRef
    latest: int
    entry: Entry
    may: str
    versions: Rows
    checkpoints: Rows
    lineage: Sequence[Step]
    jobs: Sequence[Job]
    shares: Sequence[Share]
    more_shares: str | None
    usage: AdapterUsage | None
    quick: bool

    @property
    def own(self) -> bool:
        return self.may == "own"


def adapter_view(page: Page, adapter_id: str, places: Places) -> AdapterView:
    """Read it. Raises as `find_adapter`."""
    services, owner = page.services, page.owner
    ref = find_adapter(services, owner, adapter_id)
    entry = entry_of(services, owner, adapter_id, ref)
    latest = _latest(services, ref)
    own = ref.owner == owner
    home = None
    if latest:
        home = listed_id(services, owner, AdapterRef(ref.owner, ref.name, latest))
    name = ref.name if own else f"{ref.owner}/{ref.name}"
    shares, more_shares = _shares(page, ref, places.shares)
    right = visible(owner, ref.owner, ref.name, services.tenants.shares) or "use"
    return AdapterView(
        id=adapter_id,
        name=name,
        whole="@" not in adapter_id,
        home=home,
        ref=ref,
        latest=latest,
        entry=entry,
        may=right,
        versions=_rows(page, ref, entry.get("versions"), latest, places.versions),
        checkpoints=_rows(page, ref, entry.get("checkpoints"), latest, places.checkpoints),
        lineage=lineage_of(page, ref) if own else (),
        jobs=_jobs(page, ref) if own else (),
        shares=shares,
        more_shares=more_shares,
        usage=usage_of(page, name),
        quick="error" not in entry and _is_quick(services, ref),
    )


def _latest(services: Services, ref: AdapterRef) -> int:
    """The version that the bare name means; 0: none."""
    try:
        return services.adapters.resolve(ref.owner, ref.name).version
    except (AdapterNotFound, AdapterCorrupt):
        return 0


def _rows(page: Page, of: AdapterRef, versions: object, latest: int, below: int | None) -> Rows:
    numbers = cast(Sequence[int], versions or ())
    wanted = [it for it in reversed(numbers) if below is None or it < below]
    shown = [
        VersionRow(ref.id_for(page.owner), ref.version, ref.version == latest, _header(page, ref))
        for ref in (AdapterRef(of.owner, of.name, it) for it in wanted[:MOST_ROWS])
    ]
    more = wanted[MOST_ROWS - 1] if len(wanted) > MOST_ROWS else None
    return Rows(shown, len(numbers), more)


def _header(page: Page, ref: AdapterRef) -> Mapping[str, object]:
    try:
        return header_of(page.services, page.owner, ref)
    except AdapterNotFound:
        return {"error": "it was deleted just now"}
    except AdapterCorrupt as error:
        own = ref.owner == page.owner
        return {"error": str(error) if own else f"it is damaged: {ref.owner!r} must restore it"}


def _shares(page: Page, ref: AdapterRef, after: str | None) -> tuple[Sequence[Share], str | None]:
    if ref.owner != page.owner:
        return (), None
    shares, more = page.services.tenants.shares.list(
        page.owner, adapter=ref.name, after=after, limit=_MOST_SHARES
    )
    return shares, shares[-1].id if more else None


def _jobs(page: Page, ref: AdapterRef) -> Sequence[Job]:
    """The newest jobs that continue from this version."""
    if not page.may("jobs"):
        return ()
    continuing = [ref.id_for(page.owner)]
    return page.services.jobs.list(page.owner, limit=_MOST_JOBS, models=continuing).items


def _is_quick(services: Services, ref: AdapterRef) -> bool:
    stored = services.adapters.open(ref)
    small = stored.size_bytes <= _QUICK_BYTES and stored.manifest.method not in _DENSE
    return small or services.inspections.known(stored.sha256)
