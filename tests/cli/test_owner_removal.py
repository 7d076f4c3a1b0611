"""A deleted owner goes whole, whenever the process is killed, and nobody else's things go."""

import io
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sqlalchemy import select

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from server.config import Settings
from server.db import tables, tenancy_tables
from server.db.session import Database
from server.errors import Conflict, InvalidRequest
from server.jobs.files.file_store import Files
from server.jobs.queue.job_queue import JobQueue
from server.jobs.queue.quotas import Quotas
from server.tenancy.deletions import Deletions
from server.tenancy.key_book import KeyBook
from server.tenancy.limits.limit_store import DatabaseStore
from server.tenancy.owners import Owners
from server.tenancy.people import People
from server.tenancy.principal import SERVER_ADMIN
from server.tenancy.shares import Shares
from server.wiring import owner_removal
from server.wiring.building import Records
from server.wiring.homes import open_home
from server.wiring.owner_removal import OwnerRemoval, removing_owners
from tests.api.running import eventually
from tests.small_adapters import small_manifest

OWNED = (
    *(tables.FileRow, tables.JobRow, tables.EventRow, tables.CheckpointRow, tenancy_tables.KeyRow),
    *(tenancy_tables.MembershipRow, tenancy_tables.ShareRow),
)


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_removal, "_KEYS_GONE_S", 0)


def furnish(records: Records, owner: str, other: str) -> None:
    """Give an owner some of everything."""
    database = records.database
    Owners(database).create(owner)
    People(database).add(owner, "admin", user_id=None, email=f"{owner}@example.com")
    account = People(database).add_service_account(owner, "bot").user.id
    book = KeyBook(database)
    book.create(owner, "key", by=SERVER_ADMIN)
    book.create(owner, "bot", by=SERVER_ADMIN, user=account)
    for name in ("pirate", "pirate", "parrot"):
        records.store.publish(owner, name, small_manifest(), {"q.d": torch.ones(4)})
    files = [
        records.files.create(owner, "a.jsonl", "fine-tune", io.BytesIO(b"{}")).id for _ in range(3)
    ]
    for suffix in ("one", "two", None):
        records.jobs.create(owner, "base", files[0], suffix=suffix, metadata={"a": "b"})
    with_other = Owners(database)
    if other not in [it.id for it in with_other.list(limit=100)[0]]:
        with_other.create(other)
    Shares(database).give(owner, "pirate", other, "copy", by=SERVER_ADMIN)
    Shares(database).give(owner, "parrot", "all", "use", by=SERVER_ADMIN)


def rows_of(records: Records, owner: str) -> int:
    accounts = select(tenancy_tables.UserRow).where(tenancy_tables.UserRow.service_of == owner)
    with records.database.reading() as session:
        owned = (select(table).where(table.owner == owner) for table in OWNED)
        return sum(len(session.scalars(query).all()) for query in (accounts, *owned))


def in_a_child(home: Path, killed: Path) -> int:
    """Run a removal in a process that kills itself before the first change before which none was
    killed: the first two of each kind count. Returns how it ended: the signal, or 0."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    counts: Counter[str] = Counter()

    def before(what: str) -> None:
        counts[what] += 1
        change = killed / f"{what}-{counts[what]}"
        if counts[what] <= 2 and not change.exists():
            change.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        database = Database(Settings(home=home).database)
        files = Files(database, home / "files", max_bytes=100)
        store, jobs = AdapterStore(home / "adapters"), JobQueue(database)
        records = Records(database, store, files, jobs, Quotas())
        OwnerRemoval(records, home, lambda ref: None, before).run()
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_before_each_change_it_goes_on(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with open_home(settings) as records:
        furnish(records, "gone", "stays")
        furnish(records, "also", "stays")
        kept = rows_of(records, "also")
        Shares(records.database).give("also", "pirate", "gone", "use", by=SERVER_ADMIN)
        Deletions(records.database).start("gone", "copy")
        assert rows_of(records, "also") == kept, "what it received has ended as well"
    (killed := tmp_path / "killed").mkdir()
    while (ended := in_a_child(tmp_path, killed)) != 0:
        assert ended == -signal.SIGKILL
    changes = {path.name for path in killed.iterdir()}
    assert changes >= {
        *("jobs-1", "copy-1", "copy-2", "export-1", "adapter-1", "adapter-2", "folder-1"),
        *("files-1", "files-2", "rows-1", "finish-1"),
    }
    with open_home(settings) as records:
        deletion = Deletions(records.database).get("gone")
        assert (deletion.step, deletion.done_at is None) == ("done", False)
        assert rows_of(records, "gone") == 0
        assert rows_of(records, "also") == kept
        assert records.store.names("also") == ["parrot", "pirate"]
        assert not (tmp_path / "adapters" / "gone").exists()
        assert len([*(tmp_path / "files").glob("file-*")]) == 3
        owner = Owners(records.database).get("gone")
        assert (owner.status, owner.name) == ("deleted", "gone")
        with pytest.raises(Conflict):
            Owners(records.database).create("Gone")
    exports = tmp_path / "exports" / "copy"
    names = sorted(str(path.relative_to(exports)) for path in exports.rglob("*.safetensors"))
    assert names == [
        f"adapters/{it}/adapter.safetensors" for it in ("parrot/1", "pirate/1", "pirate/2")
    ]
    assert len([*(exports / "files").iterdir()]) == 3
    assert not [*exports.rglob(".part")]


def test_a_running_job_is_stopped_before_anything_goes(tmp_path: Path) -> None:
    with open_home(Settings(home=tmp_path)) as records:
        furnish(records, "gone", "stays")
        job = records.jobs.claim("worker", 60)
        assert job is not None
        (tmp_path / "training" / job.id).mkdir(parents=True)
        book, forgotten = Deletions(records.database), list[AdapterRef]()
        book.start("gone")
        work = OwnerRemoval(records, tmp_path, forgotten.append)
        work.run()
        assert (book.get("gone").step, records.store.names("gone")) == (
            *("jobs", ["parrot", "pirate"]),
        )
        assert records.jobs.heartbeat(job) == "cancel"
        records.jobs.stop(job)
        work.run()
        assert book.get("gone").step == "done"
        assert [(ref.name, ref.version) for ref in forgotten] == [
            *(("parrot", 1), ("pirate", 1), ("pirate", 2)),
        ]
        assert not (tmp_path / "training" / job.id).exists()
        # A request that ran meanwhile may still publish.
        records.store.publish("gone", "late", small_manifest(), {"q.d": torch.ones(4)})
        work.run()
        assert records.store.names("gone") == []


def test_it_runs_beside_a_server_and_keys_are_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_removal, "_KEYS_GONE_S", 2)
    with open_home(Settings(home=tmp_path)) as records:
        furnish(records, "gone", "stays")
        database, book = records.database, Deletions(records.database)
        digests = [key.id for key in KeyBook(database).list("gone")[0]]
        assert len(digests) == 2
        with removing_owners(records, tmp_path, lambda ref: None, every_s=0.05):
            began = time.monotonic()
            book.start("gone")
            assert KeyBook(database).list("gone")[0] == []
            assert eventually(lambda: book.get("gone").step == "done", 20)
            assert time.monotonic() - began >= 0.9, "other processes must learn of revoked keys"
        assert book.start("gone").step == "done", "a second call changes nothing"


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda book: book.start("default"), Conflict),
        (lambda book: book.start("gone", "../x"), InvalidRequest),
        (lambda book: book.start("gone", ""), InvalidRequest),
    ],
)
def test_what_cannot_be_deleted(
    act: Callable[[Deletions], object], error: type[Exception], tmp_path: Path
) -> None:
    with open_home(Settings(home=tmp_path)) as records:
        furnish(records, "gone", "stays")
        with pytest.raises(error):
            act(Deletions(records.database))
        assert Owners(records.database).get("gone").status == "active"


def test_a_long_name_of_a_file_stops_no_deletion(tmp_path: Path) -> None:
    """Each character takes four bytes, so that the name is longer than a folder takes."""
    with open_home(Settings(home=tmp_path)) as records:
        Owners(records.database).create("long")
        records.files.create("long", "\U0001f600" * 255, "fine-tune", io.BytesIO(b"{}"))
        Deletions(records.database).start("long", "copy")
        OwnerRemoval(records, tmp_path, lambda ref: None).run()
        assert Deletions(records.database).get("long").done_at is not None
        (copy,) = (tmp_path / "exports" / "copy" / "files").iterdir()
        assert copy.read_bytes() == b"{}"


def test_another_copy_of_the_same_name_is_never_taken_for_this_one(tmp_path: Path) -> None:
    with open_home(Settings(home=tmp_path)) as records:
        book, work = Deletions(records.database), OwnerRemoval(records, tmp_path, lambda ref: None)
        for owner in ("a", "b", "c"):
            Owners(records.database).create(owner)
            records.files.create(owner, "a.jsonl", "fine-tune", io.BytesIO(b"{}"))
        (tmp_path / "exports" / "theirs").mkdir(parents=True)
        book.start("a", "theirs")
        book.start("b", "ours")
        with pytest.raises(Conflict, match="the copy of project 'b'"):
            book.start("c", "ours")
        for _ in range(2):
            work.run()
            assert book.get("a").done_at is None, "it waits until the folder is away"
            assert records.files.count_of("a") == 1
            assert book.get("b").done_at is not None, "others do not wait for it"
        (tmp_path / "exports" / "theirs").rmdir()
        work.run()
        assert book.get("a").done_at is not None
        assert len([*(tmp_path / "exports" / "theirs" / "files").iterdir()]) == 1


def test_a_deleted_owner_leaves_neither_its_name_nor_its_buckets(tmp_path: Path) -> None:
    with open_home(Settings(home=tmp_path)) as records:
        owners, store = Owners(records.database), DatabaseStore(records.database)
        owners.create("gone")
        owners.rename("gone", "Secret Plan")
        for kind in ("requests", "tokens"):
            store.exchange(f"{kind}/gone", 9, least=1, most=1, back=0, owed=0)
        store.hold("gone", "process", 1, 9)
        Deletions(records.database).start("gone")
        OwnerRemoval(records, tmp_path, lambda ref: None).run()
        with records.database.reading() as session:
            assert session.scalars(select(tenancy_tables.BucketRow)).all() == []
        assert owners.create("Secret Plan").id != "gone"
        with pytest.raises(Conflict, match="project 'gone'"):
            owners.create("gone")
