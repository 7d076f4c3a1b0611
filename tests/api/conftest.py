"""Servers over fakes at the seams, a real store and a real database."""

import shutil
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from fastapi import FastAPI
from starlette.datastructures import State

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from server.api.app_services import BaseCard, Services, Tenants
from server.app import create_app, describe, http_api
from server.db.session import Database, ensure_owner
from server.jobs.files.file_store import Files
from server.jobs.queue.job_queue import JobQueue
from server.metrics import Metrics
from server.tenancy.keys import Keys
from server.tenancy.limits.limit_store import DatabaseStore
from server.tenancy.limits.request_limits import RequestLimits
from server.tenancy.principal import DEFAULT_OWNER
from tests.api.fakes import (
    METHODS,
    VOCAB,
    ByteTokenizer,
    FakeEstimator,
    FakeInspections,
    FakeLoop,
    FakePorting,
    FakeResidency,
)
from tests.api.running import Host, Publish, Running, Serve, hosting
from tests.small_adapters import small_manifest

MAX_BODY = 20_000
MAX_FILE = 30_000


# The first request to new routes takes 0.1 s, and FastAPI keeps them all for ever.
_made_once = cache(http_api)


@pytest.fixture(autouse=True, scope="module")
def _same_routes() -> Iterator[None]:
    """All applications have the same routes, and each has a state of its own."""

    def copied(*, keyed: bool = True) -> FastAPI:
        app = copy(_made_once(keyed=keyed))
        app.state, app.middleware_stack = State(), None
        return app

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("server.app.http_api", copied)
        yield


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


@pytest.fixture
def publish(store: AdapterStore) -> Publish:
    """Publishes a small adapter."""

    def publish(name: str, owner: str = DEFAULT_OWNER) -> AdapterRef:
        targets = ("model.layers.0.q_proj",)
        manifest = small_manifest(targets=targets, provenance={"job": "ftjob-1"})
        return store.publish(owner, name, manifest, {"model.layers.0.q_proj.d": torch.ones(4)})

    return publish


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new home's database, to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    with database.transaction() as session:
        ensure_owner(session, DEFAULT_OWNER, database.now(session))
    database.close()
    return path


@pytest.fixture
def services(tmp_path: Path, store: AdapterStore, empty_database: Path) -> Iterator[Services]:
    """Fakes where the engine would be; everything else is real."""
    shutil.copy(empty_database, tmp_path / "verandah.db")
    database = Database(f"sqlite:///{tmp_path / 'verandah.db'}", patience_s=1)
    tenants = Tenants.of(database)
    yield Services(
        base=BaseCard("base", "tiny", "f" * 64, VOCAB, 1_600_000_000),
        engine=FakeLoop(),
        engines=(),
        tokenizer=ByteTokenizer(),
        adapters=store,
        residency=FakeResidency(),
        inspections=FakeInspections(),
        porting=FakePorting(store, tmp_path / "porting"),
        estimator=FakeEstimator(),
        files=Files(database, tmp_path / "files", max_bytes=MAX_FILE),
        jobs=JobQueue(database),
        methods=METHODS,
        keys=Keys(None, tenants.keys),
        tenants=tenants,
        limits=RequestLimits(DatabaseStore(database), tenants.limits),
        metrics=Metrics("base"),
        worker=None,
        describe=describe,
        max_rank=64,
        request_timeout_s=5.0,
        max_body_bytes=MAX_BODY,
        max_file_bytes=MAX_FILE,
    )
    database.close()


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    with hosting() as host:
        yield host


@pytest.fixture
def serve(host: Host, services: Services) -> Serve:
    """Serves `services` with some replaced."""

    def serve(**changes: object) -> Running:
        given = replace(services, **changes)  # type: ignore[arg-type]
        assert isinstance(given.engine, FakeLoop)
        assert isinstance(given.residency, FakeResidency)
        host.app = create_app(given)
        return Running(host.url, given, given.engine, given.residency, host.sdk, host.http)

    return serve


@pytest.fixture
def server(serve: Serve) -> Running:
    """A server that asks for no key."""
    return serve()
