"""A home that release 0.1 made goes on as the default owner's: see `home_0_1`.

It was made by that release: a file was uploaded, a job with the metadata `team: old` trained the
adapter `pirate` of a random Llama, and a second job was paused. Its database is kept as SQL.
"""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from server.api.app_services import Services, Tenants
from server.app import create_app
from server.db.session import Database
from server.db.tables import OwnedRow
from server.db.tenancy_tables import OwnerRow
from server.jobs.files.file_store import Files
from server.jobs.queue.job_queue import JobQueue
from server.tenancy.keys import Keys
from server.tenancy.principal import DEFAULT_OWNER, SCOPES, SERVER_ADMIN
from tests.api.tenants.asgi import Caller, calling

OLD = Path(__file__).parent / "home_0_1"
FILE, RESULTS = "file-aa94e4b84bb6f1eb94d38d9f", "file-b379d83b225deaad8c288fd5"
JOB, PAUSED = "ftjob-2feb073f1f769804dab6a204", "ftjob-7f63cc7f6e293cdc774b745c"
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    shutil.copytree(OLD, home)
    with closing(sqlite3.connect(home / "verandah.db")) as database:
        database.executescript((home / "verandah.sql").read_text())
    return home


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{home / 'verandah.db'}")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def old_services(services: Services, home: Path, database: Database) -> Services:
    return replace(
        services,
        adapters=AdapterStore(home / "adapters"),
        files=Files(database, home / "files", 1000),
        jobs=JobQueue(database),
        tenants=Tenants.of(database),
    )


def test_every_row_and_adapter_is_the_default_owners(
    old_services: Services, database: Database
) -> None:
    with database.reading() as session:
        assert session.scalars(select(OwnerRow.id)).all() == [DEFAULT_OWNER]
        for table in OwnedRow.__subclasses__():
            assert set(session.scalars(select(table.owner))) == {DEFAULT_OWNER}, table
    assert list(old_services.adapters.owners()) == [DEFAULT_OWNER]


@pytest.mark.parametrize("way", ["no key is needed", "the server's key", "a key of the default"])
def test_all_is_still_there(old_services: Services, way: str) -> None:
    book = old_services.tenants.keys
    keys, key = Keys("the key", book), "the key"
    if way == "no key is needed":
        keys, key = Keys(None, book), "any"
    elif way == "a key of the default":
        key = book.create(DEFAULT_OWNER, "laptop", by=SERVER_ADMIN, scopes=SCOPES)[1]
    with calling(create_app(replace(old_services, keys=keys))) as call:
        all_is_there(call, key)


def all_is_there(call: Caller, key: str) -> None:
    def get(path: str) -> list[str]:
        answer = call("GET", path, key=key)
        assert answer.status == 200, answer
        return [one["id"] for one in answer.json()["data"]]

    assert get("/v1/files") == [RESULTS, FILE]
    assert get("/v1/models") == ["base", "pirate"] and get("/v1/adapters") == ["pirate"]
    assert get(JOBS) == [PAUSED, JOB] and get(f"{JOBS}?metadata[team]=old") == [JOB]
    assert len(get(f"{JOBS}/{JOB}/checkpoints")) == 1
    assert len(get(f"{JOBS}/{JOB}/events?limit=100")) > 5
    content = call("GET", f"/v1/files/{FILE}/content", key=key).content
    assert content == (OLD / "files" / FILE).read_bytes()
    for name in ("pirate", "pirate@1", "default/pirate", "default/pirate@1"):
        document = call("GET", f"/v1/adapters/{name}", key=key).json()
        assert document["provenance"]["job"] == JOB, document
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
        assert call("POST", "/v1/chat/completions", key=key, json=body).status == 200
    resumed = call("POST", f"{JOBS}/{PAUSED}/resume", key=key)
    assert resumed.json()["status"] == "queued" and resumed.json()["model"] == "pirate@1"


def test_a_new_owner_sees_nothing_of_it(old_services: Services) -> None:
    tenants = old_services.tenants
    tenants.owners.create("team-a")
    key = tenants.keys.create("team-a", "laptop", by=SERVER_ADMIN, scopes=SCOPES)[1]
    with calling(create_app(replace(old_services, keys=Keys("the key", tenants.keys)))) as call:
        for path in ("/v1/files", "/v1/adapters", JOBS):
            assert call("GET", path, key=key).json()["data"] == []
        for path in (f"/v1/files/{FILE}", f"{JOBS}/{JOB}", "/v1/adapters/default/pirate"):
            assert call("GET", path, key=key).status == 404


def test_its_adapter_can_be_read(old_services: Services) -> None:
    store = old_services.adapters
    assert isinstance(store, AdapterStore)
    stored = store.open(AdapterRef(DEFAULT_OWNER, "pirate", 1))
    assert (stored.manifest.method, stored.manifest.rank) == ("vera", 4)
    assert stored.size_bytes == 2008
