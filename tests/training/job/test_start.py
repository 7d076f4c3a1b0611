"""A job continues from its owner's adapter, or from another's while that is shared to copy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from adapters_store.manifest import Manifest
from adapters_store.store import AdapterStore
from adapters_store.store_errors import AdapterNotFound
from server.errors import InvalidRequest
from server.jobs.queue.job import Job
from server.training.job.publish import publish_once
from server.training.job.start import start_of
from tests.small_adapters import small_manifest


@dataclass
class Wanted:
    """What is read of a job."""

    model: str
    owner: str = "ann"


def manifest(job: str = "ftjob-1") -> Manifest:
    return small_manifest(provenance={"job": job})


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    store = AdapterStore(tmp_path)
    for owner in ("ann", "bob"):
        store.publish(owner, "pirate", manifest(), {"q.d": torch.ones(4)})
    return store


def ref_of(store: AdapterStore, model: str, *copied: tuple[str, str]) -> Any:
    def may_copy(owner: str, of: str, name: str) -> bool:
        return owner == of or (of, name) in copied

    start = start_of(cast(Job, Wanted(model)), store, "Qwen/base", may_copy)
    return start and start.ref


def test_whose_adapter_it_continues(store: AdapterStore) -> None:
    assert ref_of(store, "Qwen/base") is None
    assert ref_of(store, "pirate@1").owner == "ann"
    assert ref_of(store, "ann/pirate@1").owner == "ann"
    shared = ref_of(store, "bob/pirate@1", ("bob", "pirate"))
    assert (shared.owner, shared.id_for("ann"), shared.id_for("bob")) == (
        *("bob", "bob/pirate@1"),
        "pirate@1",
    )


def test_a_share_that_has_ended_ends_the_job(store: AdapterStore) -> None:
    with pytest.raises(AdapterNotFound, match="gone, or no longer shared with you"):
        ref_of(store, "bob/pirate@1")
    with pytest.raises(InvalidRequest):
        ref_of(store, "Qwen/other", ("Qwen", "other"))


def test_suffixes_that_differ_in_case_are_one_adapter(store: AdapterStore, tmp_path: Path) -> None:
    """Two jobs may wait at once whose suffixes differ so: neither has an adapter yet."""

    def publish(job: str, name: str) -> str:
        lock = tmp_path / "locks" / job
        given = manifest(job), {"q.d": torch.ones(4)}
        return str(publish_once(store, "eve", name, *given, lock=lock, check_lease=lambda: None))

    assert publish("ftjob-2", "Parrot") == "Parrot@1"
    assert publish("ftjob-3", "parrot") == "Parrot@2"
    assert publish("ftjob-3", "PARROT") == "Parrot@2", "once, whatever attempt it is"
    assert store.names("eve") == ["Parrot"]
    assert store.publish("eve", "parroT", manifest(), {"q.d": torch.ones(4)}).version == 3
