"""A server with owners who have one thing of each kind, and keys of each kind."""

import hashlib
import io
import json
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from sqlalchemy import select, update

from adapters_store.store import AdapterStore
from server.api.app_services import Services
from server.db.session import Database
from server.db.tables import TableBase
from server.db.tenancy_tables import KeyRow
from server.jobs.files.file_store import RESULTS
from server.jobs.queue.train_options import TrainOptions
from server.jobs.queue.training_metrics import TrainingMetrics
from server.tenancy.keys import Keys
from server.tenancy.principal import DEFAULT_OWNER, SCOPES, SERVER_ADMIN, USUAL_SCOPES, Scope
from tests.api.fakes import FakeLoop, FakePorting, FakeResidency
from tests.small_adapters import small_manifest

SERVER_KEY = "the server's own key"
COUNTERS: frozenset[str] = frozenset()
"""Tables that count requests, and so change with refused ones too."""


@dataclass(frozen=True)
class Team:
    """An owner. All that it has contains `secret`; `ids` names its things by their kind."""

    id: str
    secret: str
    ids: dict[str, str]
    member: str  # a key of a member, with every scope that there is
    admin: str


class Town:
    """The server with its teams. Its folder has the database and all files."""

    def __init__(self, services: Services, folder: Path) -> None:
        self.folder = folder
        self.services = replace(services, keys=Keys(SERVER_KEY, services.tenants.keys))
        self.database = Database(f"sqlite:///{folder / 'verandah.db'}")
        self._made = 0

    def add_team(self, name: str) -> Team:
        """An owner with one thing of each kind."""
        tenants = self.services.tenants
        secret = hashlib.sha256(name.encode()).hexdigest()[:24]
        owner = tenants.owners.create(name).id
        people = [
            tenants.people.add(owner, role, user_id=None, email=f"{role}-{secret}@example.com")
            for role in ("member", "admin")
        ]
        member, admin = (
            tenants.keys.create(owner, secret, by=SERVER_ADMIN, user=it.user.id, scopes=SCOPES)
            for it in people
        )
        account = tenants.people.add_service_account(owner, secret).user.id
        ids = {
            "project": owner,
            "user": people[0].user.id,
            "account": account,
            "key": tenants.keys.create(owner, secret, by=SERVER_ADMIN, user=account)[0].id,
            "adapter": f"pirate-{owner}",
            "gone": tenants.owners.create(f"gone-{name}").id,
        } | self._things(owner, secret)
        tenants.deletions.start(ids["gone"])
        share = tenants.shares.give(owner, f"x{secret}", DEFAULT_OWNER, "use", by=SERVER_ADMIN)
        ids["share"] = share.id
        return Team(owner, secret, ids, member[1], admin[1])

    def _things(self, owner: str, secret: str) -> dict[str, str]:
        """Files, adapters and jobs: one that has ended, one that is paused, one that waits."""
        files, jobs = self.services.files, self.services.jobs
        said = {"role": "user", "content": secret}, {"role": "assistant", "content": secret}
        lines = b"\n".join([json.dumps({"messages": said}).encode()] * 10)
        spare = files.create(owner, f"{secret}-spare.jsonl", "fine-tune", io.BytesIO(lines))
        file = files.create(owner, f"{secret}.jsonl", "fine-tune", io.BytesIO(lines))
        for name in (f"pirate-{owner}", f"x{secret}"):
            self._publish(owner, name, secret)
        ended, paused, waiting = (
            jobs.create(
                owner,
                "base",
                file.id,
                suffix=f"x{secret}",
                hyperparameters=TrainOptions(),
                metadata={"secret": secret, secret: "x"},
            )
            for _ in range(3)
        )
        claimed = jobs.claim(secret, 30.0)
        assert claimed is not None and claimed.id == ended.id
        jobs.append_event(claimed, "info", secret)
        metrics = TrainingMetrics(1, train_loss=1.0)
        checkpoint = jobs.add_checkpoint(claimed, 1, f"x{secret}@1", metrics)
        results = files.create(owner, f"{secret}.csv", RESULTS, io.BytesIO(secret.encode()))
        jobs.add_results(claimed, results.id)
        jobs.finish(claimed, f"x{secret}@1", 7)
        jobs.pause(owner, paused.id)
        event = jobs.events(owner, ended.id).items[0]
        assert checkpoint is not None
        return {
            "file": file.id,
            "spare": spare.id,
            "results": results.id,
            "job": waiting.id,
            "paused": paused.id,
            "ended": ended.id,
            "event": event.id,
            "checkpoint": checkpoint.id,
        }

    def _publish(self, owner: str, name: str, secret: str) -> None:
        manifest = small_manifest(provenance={"file": secret})
        assert isinstance(self.services.adapters, AdapterStore)
        self.services.adapters.publish(owner, name, manifest, {"q.d": torch.ones(4)})

    def key(
        self, owner: str, scopes: Sequence[Scope] = USUAL_SCOPES, *, state: str = "good"
    ) -> str:
        """A key of nobody's. `state`: "good", "expired" or "revoked"."""
        book = self.services.tenants.keys
        made, text = book.create(owner, "key", by=SERVER_ADMIN, scopes=scopes)
        if state == "revoked":
            book.revoke(owner, made.id)
        if state == "expired":
            with self.database.transaction() as session:
                session.execute(update(KeyRow).where(KeyRow.id == made.id).values(expires_at=1))
        return text

    def digest(self) -> str:
        """What all tables, all files, the memory and the engine have seen."""
        found = hashlib.sha256()
        with self.database.reading() as session:
            for table in TableBase.metadata.sorted_tables:
                if table.name not in COUNTERS:
                    rows = session.execute(select(table).order_by(*table.primary_key)).all()
                    found.update(repr([table.name, *rows]).encode())
        found.update(repr(sorted(self.files().items())).encode())
        services = self.services
        assert isinstance(services.engine, FakeLoop)
        assert isinstance(services.porting, FakePorting)
        assert isinstance(services.residency, FakeResidency)
        seen = (
            len(services.engine.handles),
            len(services.porting.told),
            services.residency.residents,
        )
        found.update(repr(seen).encode())
        return found.hexdigest()

    def files(self) -> dict[Path, bytes]:
        """All files of the home, but for the database's, by their paths."""
        kept = (it for it in self.folder.iterdir() if it.is_dir() and it.name != "saved")
        files = (path for folder in kept for path in folder.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    def save(self) -> None:
        """Remember the database and the files."""
        self._copy(self.folder, self.folder / "saved")

    def restore(self) -> None:
        """Put back what `save` remembered."""
        self._copy(self.folder / "saved", self.folder)
        assert isinstance(self.services.residency, FakeResidency)
        self.services.residency.residents.clear()
        self.services.keys.refresh()
        self.services.tenants.shares.refresh()

    def _copy(self, source: Path, target: Path) -> None:
        target.mkdir(exist_ok=True)
        with (
            sqlite3.connect(source / "verandah.db") as old,
            sqlite3.connect(target / "verandah.db") as new,
        ):
            old.backup(new)
        old.close()
        new.close()
        for name in ("adapters", "files"):
            shutil.rmtree(target / name, ignore_errors=True)
            shutil.copytree(source / name, target / name)
