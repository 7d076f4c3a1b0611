"""What would be lost if an adapter, or one version of it, were deleted."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from adapters_store.manifest import AdapterRef
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound, InvalidName
from server.api.adapters.model_endpoints import checkpoints_of
from server.api.app_services import Services
from server.api.model_lookup import parse_owned_id, unknown_model
from server.console.adapters.adapter_usage import AdapterUsage, usage_of
from server.console.rendering import Page
from server.jobs.queue.job import Job, JobStatus
from server.tenancy.shares import Share

_MOST_SHARES: Final = 20
_MOST_JOBS: Final = 20
_WAITING: Final = (JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.RUNNING)


@dataclass(frozen=True)
class DeletionCosts:
    """What goes, of an adapter (`version` None) or of one version.

    Attributes:
        versions, checkpoints, bytes: what is deleted.
        heir: what the bare name means afterwards; 0: nothing.
        shares: those that end; `more_shares` says whether there are others.
        in_use: answers that use it now. They finish.
        jobs: those that wait or run, and continue from what is deleted.
        damaged: the adapter does not say what it has.
    """

    id: str
    name: str
    version: int | None
    versions: Sequence[int]
    checkpoints: Sequence[int]
    bytes: int
    heir: int
    renamed: bool
    shares: Sequence[Share]
    more_shares: bool
    in_use: int
    pinned: bool
    jobs: Sequence[Job]
    usage: AdapterUsage | None
    damaged: bool


def deletion_costs(page: Page, adapter_id: str) -> DeletionCosts:
    """Look at what there is. Raises ModelNotFound: nothing of that name is the owner's."""
    services, owner = page.services, page.owner
    name, version = _named(services, owner, adapter_id)
    versions, checkpoints, damaged = _versions(services, owner, name)
    ref = None if version is None else AdapterRef(owner, name, version)
    if not damaged and (version not in versions if version is not None else not versions):
        raise unknown_model(services, adapter_id)
    gone = versions if ref is None else [ref.version, *checkpoints_of(services, ref)]
    results = [it for it in versions if it not in checkpoints]
    left = [it for it in results if it not in gone]
    refs = {AdapterRef(owner, name, it) for it in gone}
    ends = not left if version is None else not {*versions} - {*gone}
    shares, more = services.tenants.shares.list(owner, adapter=name, limit=_MOST_SHARES)
    statuses = [it for it in services.residency.snapshot() if it.ref in refs]
    return DeletionCosts(
        id=adapter_id,
        name=name,
        version=version,
        versions=[it for it in gone if it not in checkpoints],
        checkpoints=[it for it in gone if it in checkpoints],
        bytes=sum(_size(services, it) for it in refs),
        heir=max(left, default=0),
        renamed=max(results, default=0) in gone,
        shares=shares if ends else (),
        more_shares=more and ends,
        in_use=sum(it.in_use for it in statuses),
        pinned=any(it.pinned for it in statuses),
        jobs=_jobs(page, sorted(refs)),
        usage=usage_of(page, name),
        damaged=damaged,
    )


def _named(services: Services, owner: str, adapter_id: str) -> tuple[str, int | None]:
    try:
        of, name, version, right = parse_owned_id(services, owner, adapter_id)
    except (AdapterNotFound, InvalidName) as error:
        raise unknown_model(services, adapter_id) from error
    if right != "own" or of != owner:
        raise unknown_model(services, adapter_id)
    return name, version


def _versions(services: Services, owner: str, name: str) -> tuple[list[int], list[int], bool]:
    try:
        store = services.adapters
        return [*store.versions(owner, name)], [*store.aside(owner, name)], False
    except AdapterCorrupt:
        return [], [], True


def _size(services: Services, ref: AdapterRef) -> int:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return services.adapters.path(ref).stat().st_size
    return 0


def _jobs(page: Page, refs: Sequence[AdapterRef]) -> Sequence[Job]:
    if not page.may("jobs"):
        return ()
    models = [ref.id_for(page.owner) for ref in refs]
    lists = [
        page.services.jobs.list(page.owner, limit=_MOST_JOBS, status=status, models=models)
        for status in _WAITING
    ]
    return [job for found in lists for job in found.items]
