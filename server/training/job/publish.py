"""Publish what a job has trained, exactly once. Knows no trainer."""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from adapters_store.manifest import AdapterRef, Manifest
from adapters_store.store import AdapterStore
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound

JOB = "job"
"""The key of the job's id in a manifest's provenance."""
STEP = "step"
"""The key of a checkpoint's step there; a final version has none."""


def milestones(total_steps: int, every: int, count: int) -> frozenset[int]:
    """At most `count` multiples of `every` before the last step, spread evenly over the run."""
    ends = range(every, total_steps, every)
    even = (round(total_steps * (i + 1) / (count + 1)) for i in range(count))
    return frozenset(min(ends, key=lambda end: abs(end - step)) for step in even if ends)


def publish_once(
    store: AdapterStore,
    owner: str,
    name: str,
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    *,
    lock: Path,
    check_lease: Callable[[], None],
) -> AdapterRef:
    """Publish, unless an earlier attempt of the same job has; return its version either way.

    An attempt may die after publishing, or hang and lose its lease. So attempts take `lock` in
    turn. Each then checks that the job is still its own (`check_lease` raises if not), and next
    that no version names the job. A manifest that names a step is a checkpoint's: it
    does not become the latest version, and each step has one.
    """
    step = manifest.provenance.get(STEP)
    with _locked(lock):
        check_lease()
        name = store.spelled(owner, name)  # another job may have published under it meanwhile
        published = _published_version(store, owner, name, manifest.provenance[JOB], step)
        if published is not None:
            return published
        return store.publish(owner, name, manifest, tensors, latest=step is None)


def _published_version(
    store: AdapterStore, owner: str, name: str, job: str, step: str | None
) -> AdapterRef | None:
    """The version that `job` has published at `step`; the newest are read first.

    A damaged one is passed over: if it is the job's, it is published once more.
    """
    for version in reversed(store.versions(owner, name)):
        ref = AdapterRef(owner, name, version)
        try:
            provenance = store.open(ref).manifest.provenance
        except (AdapterCorrupt, AdapterNotFound):  # or deleted since
            continue
        if (provenance.get(JOB), provenance.get(STEP)) == (job, step):
            return ref
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:  # closing it, or the process's end, unlocks it
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
