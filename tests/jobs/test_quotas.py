"""What owners may keep and train, at the edges and raced by eight threads."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from adapters_store.store import AdapterStore
from server.db.owner_limits import Limits
from server.db.tenancy_tables import LimitRow
from server.errors import QuotaExceeded
from server.jobs.files.file_store import RESULTS, Files
from server.jobs.queue.job_estimate import JobEstimate
from server.jobs.queue.job_queue import JobQueue
from server.jobs.queue.quotas import Quotas
from tests.jobs.conftest import Jobs
from tests.small_adapters import small_manifest


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


def limited(jobs: Jobs, owner: str, **own: int) -> None:
    with jobs.database.transaction() as session:
        session.add(LimitRow(owner=owner, revision=1, **own))


def passes(actions: list[Callable[[], object]]) -> int:
    """How many of these, all at the same time, are not refused by a quota."""

    def one(action: Callable[[], object]) -> int:
        try:
            action()
        except QuotaExceeded:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(one, actions))


def estimate(tokens: int, size: int = 0) -> JobEstimate:
    return JobEstimate(1, 1, tokens, 1, 1, 1, 1, tokens, 1, False, 1, size)


def test_files_and_bytes(jobs: Jobs, tmp_path: Path, store: AdapterStore) -> None:
    quotas = Quotas(Limits(files=4, stored_bytes=100), store.sizes)
    files = Files(jobs.database, tmp_path / "files", 1000, quotas)

    def upload(owner: str, size: int) -> Callable[[], object]:
        return lambda: files.create(owner, "x.jsonl", "fine-tune", io.BytesIO(b"x" * size))

    assert passes([upload("ann", 1)] * 8) == 4
    assert passes([upload("bob", 30)] * 8) == 3
    upload("bob", 10)()
    with pytest.raises(QuotaExceeded, match="may have 4: delete some"):
        upload("bob", 0)()
    files.delete("bob", files.list("bob").items[0].id)
    with pytest.raises(QuotaExceeded, match=r"take 90 bytes, with 11 more .* 101, .* 100: delete"):
        upload("bob", 11)()
    upload("bob", 10)()
    assert files.create("bob", "m.csv", RESULTS, io.BytesIO(b"x" * 50)).bytes == 50, "a job's own"
    limited(jobs, "ann", files=6, stored_bytes=0)
    assert passes([upload("ann", 200)] * 8) == 2


def test_adapters_and_their_bytes(jobs: Jobs, store: AdapterStore, tmp_path: Path) -> None:
    jobs.file("ann")
    jobs.file("bob")
    quotas = Quotas(Limits(adapters=3), store.sizes)

    def publish(owner: str, name: str) -> Callable[[], object]:
        return lambda: store.publish(
            owner,
            name,
            small_manifest(),
            {"q.d": torch.ones(4)},
            room=lambda size: quotas.keeping(jobs.database, owner, name, size),
        )

    assert passes([publish("ann", f"one{it}") for it in range(8)]) == 3
    assert len(store.names("ann")) == 3
    publish("ann", store.names("ann")[0])()  # a further version
    with pytest.raises(QuotaExceeded, match=r"has 3 adapters, .* may have 3: delete some"):
        publish("ann", "more")()
    store.delete("ann", store.names("ann")[0])
    publish("ann", "more")()
    size = sum(store.sizes("ann").values()) // 3
    limited(jobs, "bob", stored_bytes=int(3.5 * size))
    assert passes([publish("bob", f"one{it}") for it in range(8)]) == 3
    assert not [
        *(
            Path(store.path(store.resolve("bob", store.names("bob")[0]))).parents[3] / ".staging"
        ).iterdir()
    ]


def test_waiting_jobs_and_coming_adapters(jobs: Jobs, store: AdapterStore) -> None:
    jobs.file("ann")
    quotas = Quotas(Limits(waiting_jobs=3, adapters=2), store.sizes)
    queue = JobQueue(jobs.database, quotas)

    def create(suffix: str) -> Callable[[], object]:
        return lambda: queue.create("ann", "base", jobs.file("ann"), suffix=suffix)

    assert passes([create("same")] * 8) == 3
    assert queue.claim("w", 30) and queue.claim("w", 30)
    create("other")()
    with pytest.raises(QuotaExceeded, match="has 2 adapters, with those that its jobs will make"):
        create("third")()
    create("same")()
    queue.pause("ann", queue.list("ann").items[0].id)
    with pytest.raises(QuotaExceeded, match="3 jobs of the project 'ann' wait or are paused"):
        create("same")()
    assert len(queue.list("ann").items) == 5


def test_training_tokens_a_day(jobs: Jobs) -> None:
    jobs.file("ann")
    queue = JobQueue(jobs.database, Quotas(Limits(training_tokens_a_day=1000)))

    def create(tokens: int) -> Callable[[], object]:
        file = jobs.file("ann")
        return lambda: queue.create("ann", "base", file, estimate=estimate(tokens))

    assert passes([create(300)] * 8) == 3
    with pytest.raises(QuotaExceeded, match=r"take 900 .* 101 more .* 1001, and may take 1000"):
        create(101)()
    create(100)()
    job = queue.claim("w", 30)
    assert job is not None
    queue.finish(job, "x@1", 250)  # less than was estimated
    create(50)()
    with pytest.raises(QuotaExceeded):
        create(1)()
    for each in queue.list("ann").items:
        if not each.status.ended:
            queue.cancel("ann", each.id)
    create(750)()
    jobs.clock.now += 86_401
    create(250)()


def test_running_jobs_wait_for_one_another(jobs: Jobs) -> None:
    queue = JobQueue(jobs.database, Quotas(Limits(running_jobs=1)))
    for owner in ("ann", "bob"):
        for _ in range(3):
            jobs.create(owner)
    with ThreadPoolExecutor(8) as pool:
        claimed = [job for job in pool.map(lambda it: queue.claim(f"w{it}", 30), range(8)) if job]
    more = [job for _ in range(2) if (job := queue.claim("late", 30))]  # whom a race passed over
    running = sorted(job.owner for job in claimed + more)
    assert running == ["ann", "bob"] and not queue.has_claimable()
    limited(jobs, "ann", running_jobs=2)
    assert queue.has_claimable()
    second = queue.claim("w", 30)
    assert second is not None and second.owner == "ann" and queue.claim("w", 30) is None
    jobs.clock.now += 31  # all are lost: each is taken over, whatever the limit
    assert len([1 for _ in range(6) if queue.claim("again", 30)]) == 3
