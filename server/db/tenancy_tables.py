"""The tables of owners: who they are, what they may do, and what they have used and changed."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Double, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from server.db.tables import Counter, Label, Name, TableBase


class OwnerRow(TableBase):
    """Whoever rows and adapters belong to; the API calls it a project.

    No two have the same `folded` name: see `server.tenancy.owners.folded`.
    """

    __tablename__ = "owners"
    __table_args__ = (Index("ix_owners_folded", "folded", unique=True),)

    id: Mapped[str] = mapped_column(Name, primary_key=True)
    name: Mapped[str] = mapped_column(Label, server_default="")
    folded: Mapped[str] = mapped_column(Text, server_default="")
    status: Mapped[str] = mapped_column(Name, server_default="active")
    created_at: Mapped[int] = mapped_column(BigInteger)
    archived_at: Mapped[int | None] = mapped_column(BigInteger)
    shares_revision: Mapped[int] = mapped_column(BigInteger, server_default="0", index=True)


class UserRow(TableBase):
    """A person, or a service account: a program that belongs to the owner `service_of`."""

    __tablename__ = "users"

    number: Mapped[int] = mapped_column(Counter, primary_key=True)
    id: Mapped[str] = mapped_column(Name, unique=True)
    email: Mapped[str | None] = mapped_column(Label, unique=True)
    name: Mapped[str] = mapped_column(Label)
    role: Mapped[str] = mapped_column(Name)
    service_of: Mapped[str | None] = mapped_column(ForeignKey("owners.id"), index=True)
    added_at: Mapped[int] = mapped_column(BigInteger)


class IdentityRow(TableBase):
    """Whom a sign-in provider knows as `subject`, and which user that is here.

    `admin_by_groups`: the user is an admin of the server as long as the provider's groups say so.
    """

    __tablename__ = "identities"
    __table_args__ = (Index("ix_identities_issuer", "issuer", "subject", unique=True),)

    number: Mapped[int] = mapped_column(Counter, primary_key=True)
    issuer: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(String(255))
    user_number: Mapped[int] = mapped_column(ForeignKey("users.number"), index=True)
    admin_by_groups: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[int] = mapped_column(BigInteger)
    last_sign_in_at: Mapped[int | None] = mapped_column(BigInteger)


class SessionRow(TableBase):
    """What a sign-in gave: a browser's session, or a code that a program turns into a key. Only the
    SHA-256 of its text is kept, and of the `state` that began it. `key` is the id of the key that a
    session has for the console; keys of a deleted owner are gone, so it is no foreign key."""

    __tablename__ = "sessions"

    number: Mapped[int] = mapped_column(Counter, primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    state_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    user: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    kind: Mapped[str] = mapped_column(Name)
    challenge: Mapped[str] = mapped_column(Name)
    key: Mapped[str | None] = mapped_column(Name)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)


class MembershipRow(TableBase):
    """What a user may do for an owner. `source`: "hand", or "groups" of the sign-in provider."""

    __tablename__ = "memberships"
    __table_args__ = (Index("ix_memberships_owner", "owner", "user", unique=True),)

    number: Mapped[int] = mapped_column(Counter, primary_key=True)
    owner: Mapped[str] = mapped_column(ForeignKey("owners.id"))
    user: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    role: Mapped[str] = mapped_column(Name)
    added_at: Mapped[int] = mapped_column(BigInteger)
    source: Mapped[str] = mapped_column(Name, server_default="hand")


class KeyRow(TableBase):
    """An API key: only the SHA-256 of its text, and a `prefix` by which people know it.

    `revision` is that of the last change that touched it, or its user's or owner's rights.
    """

    __tablename__ = "keys"
    __table_args__ = (Index("ix_keys_owner", "owner", "number"),)

    number: Mapped[int] = mapped_column(Counter, primary_key=True)
    id: Mapped[str] = mapped_column(Name, unique=True)
    kind: Mapped[str] = mapped_column(Name)
    owner: Mapped[str] = mapped_column(ForeignKey("owners.id"))
    user: Mapped[str | None] = mapped_column(ForeignKey("users.id"), index=True)
    name: Mapped[str] = mapped_column(Label)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    prefix: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int] = mapped_column(BigInteger)
    created_by: Mapped[str] = mapped_column(Name)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    last_used_at: Mapped[int | None] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger, index=True)


class LimitRow(TableBase):
    """What one owner may use, where it differs from the server's limits (NULL); 0: no limit.

    `revision` is that of the last change.
    """

    __tablename__ = "limits"

    owner: Mapped[str] = mapped_column(ForeignKey("owners.id"), primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger, index=True)
    requests_a_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_a_minute: Mapped[int | None] = mapped_column(BigInteger)
    requests_at_once: Mapped[int | None] = mapped_column(BigInteger)
    adapters: Mapped[int | None] = mapped_column(BigInteger)
    files: Mapped[int | None] = mapped_column(BigInteger)
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    running_jobs: Mapped[int | None] = mapped_column(BigInteger)
    waiting_jobs: Mapped[int | None] = mapped_column(BigInteger)
    training_tokens_a_day: Mapped[int | None] = mapped_column(BigInteger)
    weight: Mapped[float | None] = mapped_column(Double)


class BucketRow(TableBase):
    """What all processes share of one limit a minute: see `server.tenancy.limits.gcra`."""

    __tablename__ = "buckets"

    key: Mapped[str] = mapped_column(Label, primary_key=True)
    full_at: Mapped[float] = mapped_column(Double)


class PlaceRow(TableBase):
    """How many of an owner's requests at once a process has taken, until it is no longer seen."""

    __tablename__ = "places"

    owner: Mapped[str] = mapped_column(Name, primary_key=True)
    process: Mapped[str] = mapped_column(Name, primary_key=True)
    held: Mapped[int] = mapped_column(BigInteger)
    seen_at: Mapped[float] = mapped_column(Double)


class TenancyRow(TableBase):
    """One row: `revision` counts the changes of keys and of what they allow, and `seal` tells keys
    of this database from made-up ones."""

    __tablename__ = "tenancy"

    number: Mapped[int] = mapped_column(Counter, primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger)
    seal: Mapped[str] = mapped_column(String(64))


class ShareRow(TableBase):
    """An adapter of the owner that the receiver may use or copy. Receiver NULL: all owners."""

    __tablename__ = "shares"

    number: Mapped[int] = mapped_column(Counter, primary_key=True)
    id: Mapped[str] = mapped_column(Name, unique=True)
    owner: Mapped[str] = mapped_column(ForeignKey("owners.id"), index=True)
    adapter: Mapped[str] = mapped_column(Name)
    receiver: Mapped[str | None] = mapped_column(ForeignKey("owners.id"), index=True)
    to: Mapped[str] = mapped_column(Name)
    created_at: Mapped[int] = mapped_column(BigInteger)
    created_by: Mapped[str] = mapped_column(Name)


class DeletionRow(TableBase):
    """An owner that is being deleted, or was."""

    __tablename__ = "deletions"

    owner: Mapped[str] = mapped_column(ForeignKey("owners.id"), primary_key=True)
    export: Mapped[str | None] = mapped_column(Name)
    step: Mapped[str] = mapped_column(Name)
    requested_at: Mapped[int] = mapped_column(BigInteger)
    done_at: Mapped[int | None] = mapped_column(BigInteger)


class AuditRow(TableBase):
    """Something that an admin or an owner changed. Rows are only added: the database refuses to
    change one. They name owners and keys without foreign keys, since they outlive them."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_owner", "owner", "number"), Index("ix_audit_at", "at"))

    number: Mapped[int] = mapped_column(Counter, primary_key=True)
    id: Mapped[str] = mapped_column(Name, unique=True)
    at: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[str | None] = mapped_column(Name)
    actor: Mapped[str] = mapped_column(Label)
    key: Mapped[str | None] = mapped_column(Name)
    address: Mapped[str] = mapped_column(Name)
    action: Mapped[str] = mapped_column(Name)
    object: Mapped[str] = mapped_column(Text)
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class UsageRow(TableBase):
    """What one key of an owner used of one model in the hour, or day, that begins at `start`.

    No foreign keys, and empty texts for what is unknown: counts outlive what they count, and all
    columns of the key must hold something.
    """

    __tablename__ = "usage"
    __table_args__ = (Index("ix_usage_owner", "owner", "start"),)

    start: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    owner: Mapped[str] = mapped_column(Name, primary_key=True)
    key: Mapped[str] = mapped_column(Name, primary_key=True)
    user: Mapped[str] = mapped_column(Name, primary_key=True)
    model: Mapped[str] = mapped_column(Label, primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger, default=0)
    refusals: Mapped[int] = mapped_column(BigInteger, default=0)
    prompt: Mapped[int] = mapped_column(BigInteger, default=0)
    cached: Mapped[int] = mapped_column(BigInteger, default=0)
    completion: Mapped[int] = mapped_column(BigInteger, default=0)
    training: Mapped[int] = mapped_column(BigInteger, default=0)


class UsageWriterRow(TableBase):
    """A process that adds to `usage`, and the number of its last batch: a batch whose answer was
    lost is sent again, and must not count twice."""

    __tablename__ = "usage_writers"

    writer: Mapped[str] = mapped_column(Name, primary_key=True)
    batch: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[int] = mapped_column(BigInteger)
