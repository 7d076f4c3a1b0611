"""Publish what a job trained, exactly once. Knows no training."""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from adapters_store.manifest import AdapterRef, Manifest
from adapters_store.store import AdapterStore

JOB = "job"
"""The key of a manifest's provenance under which the job's id stands."""


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
    """Publish unless an earlier attempt of the same job already has; return its version either way.

    An attempt may die after publishing, or hang, lose its lease and wake up late. So attempts take
    the file `lock` in turn, and within it make sure first that the job is still theirs
    (`check_lease` raises if not), then that no version names the job.
    """
    job = manifest.provenance[JOB]
    with _locked(lock):
        check_lease()
        published = _find(store, owner, name, job)
        return published or store.publish(owner, name, manifest, tensors)


def _find(store: AdapterStore, owner: str, name: str, job: str) -> AdapterRef | None:
    """The version that `job` published; the newest are looked at first."""
    for version in reversed(store.versions(owner, name)):
        ref = AdapterRef(owner, name, version)
        if store.open(ref).manifest.provenance.get(JOB) == job:
            return ref
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:  # closing it, or the process's end, gives the lock back
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
