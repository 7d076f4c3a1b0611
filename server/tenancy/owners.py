"""The owners: everybody's files, jobs and adapters belong to one. The API calls them projects."""

import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters_store.manifest import is_name
from adapters_store.outside_values import shown
from server.db.audit_trail import record
from server.db.session import ACTIVE_OWNER, Database
from server.db.tenancy_tables import KeyRow, OwnerRow
from server.errors import Conflict, InvalidRequest, NotFound
from server.tenancy.principal import DEFAULT_OWNER
from server.tenancy.revisions import changing, page_of, printable, touch_keys

ACTIVE = ACTIVE_OWNER
ARCHIVED = "archived"
EVERYBODY = "all"
"""What stands for all owners, so that none may have the name."""

_LETTERS = frozenset(map(chr, range(0x20, 0x7F))) | frozenset("æœøßđłþðÆŒØẞĐŁÞÐ")
""""Without accents, which names may have as well."""


@dataclass(frozen=True)
class Owner:
    """An owner. `status`: "active", "archived" or "deleting"; keys of the last two are refused."""

    id: str
    name: str
    status: str
    created_at: int
    archived_at: int | None

    @classmethod
    def from_row(cls, row: OwnerRow) -> "Owner":
        return cls(row.id, row.name or row.id, row.status, row.created_at, row.archived_at)


class Owners:
    """All owners. Raises Unavailable where the database cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str) -> Owner:
        """Make an owner. Its id is the name in small letters, if a folder may have that name.

        Raises:
            InvalidRequest: it is no name.
            Conflict: an owner's name or id differs only in capital letters or Unicode form.
        """
        name = _owner_name(name)
        short = folded(name)
        owner_id = short if is_name(short) else f"proj_{secrets.token_hex(12)}"
        with changing(self._database) as (session, _):
            _refuse_taken(session, name, owner_id)
            now = int(self._database.now(session))
            row = OwnerRow(id=owner_id, name=name, folded=short, status=ACTIVE, created_at=now)
            session.add(row)
            record(session, now, "project.created", row.id, owner=row.id, after={"name": name})
            return Owner.from_row(row)

    def get(self, owner_id: str) -> Owner:
        """Raises NotFound."""
        with self._database.reading() as session:
            return Owner.from_row(find_owner(session, owner_id))

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        archived: bool = False,
        search: str = "",
    ) -> tuple[Sequence[Owner], bool]:
        """A page of owners by id, those whose id or name holds `search`, and whether more follow.
        Raises InvalidRequest."""
        query = select(OwnerRow)
        if part := folded(clean(search)):
            held = [it.contains(part, autoescape=True) for it in (OwnerRow.id, OwnerRow.folded)]
            query = query.where(held[0] | held[1])
        if not archived:
            query = query.where(OwnerRow.status == ACTIVE)
        behind = None if after is None else OwnerRow.id == clean(after)
        with self._database.reading() as session:
            rows, more = page_of(session, query, OwnerRow.id, behind, limit)
            return [Owner.from_row(row) for (row,) in rows], more

    def rename(self, owner_id: str, name: str) -> Owner:
        """Change the name that people see; the id stays. Raises as `create`, and NotFound."""
        name = _owner_name(name)
        with changing(self._database) as (session, _):
            row = find_owner(session, owner_id)
            _refuse_taken(session, name, None, besides=row.id)
            record(
                *(session, self._database.now(session), "project.updated", row.id),
                owner=row.id,
                before={"name": row.name},
                after={"name": name},
            )
            row.name, row.folded = name, folded(name)
            return Owner.from_row(row)

    def archive(self, owner_id: str) -> Owner:
        """Refuse the owner's keys from now on. Nothing is deleted. Raises NotFound, Conflict."""
        with changing(self._database) as (session, revision):
            row = find_owner(session, owner_id)
            if row.id == DEFAULT_OWNER:
                raise Conflict(
                    f"project {DEFAULT_OWNER!r} is the server's own, so it cannot be archived"
                )
            if row.status == ACTIVE:
                now = self._database.now(session)
                row.status, row.archived_at = ARCHIVED, int(now)
                record(
                    *(session, now, "project.archived", row.id),
                    owner=row.id,
                    before={"status": ACTIVE},
                    after={"status": ARCHIVED},
                )
                touch_keys(session, revision, KeyRow.owner == row.id)
                row.shares_revision = revision  # nobody finds what it shares any more
            return Owner.from_row(row)


def folded(name: str) -> str:
    """What is the same for names that differ only in capital letters or Unicode form."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _owner_name(text: str) -> str:
    """A name that looks like no other: all letters are Latin, and no two of them look the same.

    Raises:
        InvalidRequest: it is none, or stands for all owners.
    """
    name = printable(text, "name")
    if folded(name) == EVERYBODY:
        raise InvalidRequest(
            f"name {EVERYBODY!r} stands for all projects: choose another", param="name"
        )
    parts = unicodedata.normalize("NFKD", name)
    odd = next((it for it in parts if it not in _LETTERS and not unicodedata.combining(it)), None)
    if odd is not None:
        raise InvalidRequest(
            f"name {shown(name)} has {shown(odd)}, which may look like another letter: use Latin "
            "letters, with accents if need be, digits, spaces and ASCII's punctuation",
            param="name",
        )
    return name


def find_owner(session: Session, owner_id: str) -> OwnerRow:
    """Raises NotFound."""
    row = session.get(OwnerRow, clean(owner_id))
    if row is None:
        raise no_such_project(owner_id)
    return row


def no_such_project(owner_id: str) -> NotFound:
    return NotFound(
        f"project {shown(owner_id)} does not exist or is not yours: "
        "GET /v1/organization/projects and `verandah owners` list them"
    )


def clean(sent_id: str) -> str:
    """An id to look for. PostgreSQL refuses NUL, which no id has."""
    return sent_id if sent_id.isprintable() else ""


def _refuse_taken(
    session: Session, name: str, owner_id: str | None, *, besides: str | None = None
) -> None:
    ids = {folded(name), owner_id}
    same = (OwnerRow.folded == folded(name)) | OwnerRow.id.in_([it for it in ids if it])
    row = session.scalar(select(OwnerRow).where(same, OwnerRow.id != (besides or "")))
    if row is not None:
        raise Conflict(
            f"the name {shown(name)} is that of project {row.id!r}, or differs from it only in "
            "capital letters or Unicode form: choose another name"
        )
