"""Publishing once, whoever asks and however often."""

import threading
from pathlib import Path

import pytest
import torch

from adapters_store.manifest import AdapterRef, Manifest
from adapters_store.store import AdapterStore
from server.errors import LeaseLost
from server.training.job.publish import JOB, publish_once


def manifest(job: str) -> Manifest:
    return Manifest(
        method="vera",
        rank=4,
        scale=1.0,
        seed=0,
        basis_spec="spec",
        basis_sha256="f" * 64,
        base_name="tiny",
        base_fingerprint="fp",
        targets=("q_proj",),
        created_at=0,
        provenance={JOB: job},
    )


def publish(store: AdapterStore, job: str, lock: Path) -> AdapterRef:
    tensors = {"q_proj.d": torch.zeros(4)}
    return publish_once(
        store, "ann", "pirate", manifest(job), tensors, lock=lock, check_lease=lambda: None
    )


def test_a_job_has_one_version_however_often_it_publishes(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters")
    lock = tmp_path / "jobs" / "a.lock"
    first = publish(store, "job-a", lock)
    publish(store, "job-b", tmp_path / "jobs" / "b.lock")
    assert publish(store, "job-a", lock) == first
    assert store.versions("ann", "pirate") == [1, 2]


def test_attempts_that_race_publish_one_version(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters")
    found: list[AdapterRef] = []
    racers = [
        threading.Thread(target=lambda: found.append(publish(store, "job-a", tmp_path / "a.lock")))
        for _ in range(8)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert found == [AdapterRef("ann", "pirate", 1)] * 8
    assert store.versions("ann", "pirate") == [1]


def test_without_the_lease_nothing_is_published(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters")

    def lost() -> None:
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        publish_once(
            store,
            "ann",
            "pirate",
            manifest("job-a"),
            {"q_proj.d": torch.zeros(4)},
            lock=tmp_path / "a.lock",
            check_lease=lost,
        )
    assert store.names("ann") == []
