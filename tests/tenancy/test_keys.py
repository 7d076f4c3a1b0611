"""Keys name whose request it is, and are remembered without being believed for long."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import make_transient

from server.db.owner_limits import Limits
from server.db.session import Database
from server.db.tenancy_tables import KeyRow
from server.errors import Unauthorized, Unavailable
from server.tenancy.deletions import Deletions
from server.tenancy.found_key import FoundKey
from server.tenancy.key_book import KeyBook
from server.tenancy.key_text import digest_of, new_key
from server.tenancy.key_watch import watching_keys
from server.tenancy.keys import Keys
from server.tenancy.limits.limit_book import LimitBook
from server.tenancy.limits.limit_store import DatabaseStore
from server.tenancy.limits.request_limits import RequestLimits
from server.tenancy.owners import Owners
from server.tenancy.people import People
from server.tenancy.principal import DEFAULT_OWNER, SERVER_ADMIN, USUAL_SCOPES, Principal
from server.tenancy.revisions import changing
from server.tenancy.shares import Shares


async def at_once(call: Callable[..., FoundKey], *args: Any) -> FoundKey:
    return call(*args)


def who(
    keys: Keys, key: str | None, run: Callable[..., Awaitable[FoundKey]] = at_once
) -> Principal:
    header = None if key is None else f"Bearer {key}"
    return asyncio.run(keys.principal(header, run))


class CountingBook(KeyBook):
    """Counts its queries, and can lose its database."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.asked = 0
        self.away = False

    def find(self, digest: str) -> FoundKey:
        self.asked += 1
        if self.away:
            raise Unavailable("the database is away")
        return super().find(digest)


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def book(database: Database) -> CountingBook:
    return CountingBook(database)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(book: CountingBook, clock: Clock) -> Keys:
    return Keys("the-key", book, clock=clock)


@pytest.fixture
def team(database: Database) -> str:
    return Owners(database).create("Team-A").id


def made(book: KeyBook, team: str, **options: Any) -> tuple[str, str]:
    """A new key: its id and text."""
    key, text = book.create(team, "laptop", by=SERVER_ADMIN, **options)
    return key.id, text


@pytest.mark.parametrize("key", [None, "", "x", "any", "sk-nonsense"])
def test_without_a_key_anybody_is_the_servers_admin(key: str | None) -> None:
    assert who(Keys(), key) == SERVER_ADMIN
    assert SERVER_ADMIN.owner == DEFAULT_OWNER and SERVER_ADMIN.server_admin


@pytest.mark.parametrize("header", ["Bearer the-key", "bearer the-key", "Bearer  the-key "])
def test_the_servers_key_opens(keys: Keys, header: str) -> None:
    assert asyncio.run(keys.principal(header, at_once)) == SERVER_ADMIN


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "the-key", "Basic the-key", "Bearer the-ke", "Bearer the-key2",
     "Bearer THE-KEY", "Bearer \udcff", "Bearer vr-\udcff", "Bearer vr-", "Bearer vr-" + "a" * 49],
)  # fmt: skip
def test_nothing_else_does(keys: Keys, book: CountingBook, header: str | None) -> None:
    with pytest.raises(Unauthorized) as caught:
        asyncio.run(keys.principal(header, at_once))
    assert "the-key" not in str(caught.value) and book.asked == 0


def test_an_owners_key_is_the_owners(keys: Keys, book: KeyBook, team: str) -> None:
    key_id, text = made(book, team)
    principal = who(keys, text)
    assert (principal.owner, principal.key, principal.role) == ("team-a", key_id, "member")
    assert principal.scopes == frozenset(USUAL_SCOPES) and not principal.server_admin
    assert who(Keys(None, book), text) == principal, "where no key is needed, a key counts as well"


def test_a_key_is_asked_for_once_a_minute(
    keys: Keys, book: CountingBook, clock: Clock, team: str
) -> None:
    text = made(book, team)[1]
    for _ in range(50):
        who(keys, text)
    assert book.asked == 1
    clock.now += 61
    who(keys, text)
    assert book.asked == 2


def test_requests_at_once_ask_once(keys: Keys, book: CountingBook, team: str) -> None:
    text = made(book, team)[1]

    async def slowly(call: Callable[..., FoundKey], *args: Any) -> FoundKey:
        await asyncio.sleep(0.01)
        return call(*args)

    async def many() -> list[Principal]:
        return await asyncio.gather(*(keys.principal(f"Bearer {text}", slowly) for _ in range(9)))

    assert {principal.owner for principal in asyncio.run(many())} == {"team-a"}
    assert book.asked == 1


def test_made_up_keys_cost_no_query(keys: Keys, book: CountingBook, team: str) -> None:
    text = made(book, team)[1]
    who(keys, text)
    for wrong in (text[:-1] + "_", "vr-" + "x" * 49, new_key("of another database"), text + "x"):
        if wrong != text:
            with pytest.raises(Unauthorized, match="unknown"):
                who(keys, wrong)
    assert book.asked == 1


def test_a_revoked_key_is_refused_once_it_is_known(
    keys: Keys, book: CountingBook, team: str
) -> None:
    key_id, text = made(book, team)
    who(keys, text)
    book.revoke(team, key_id)
    keys.refresh()
    for _ in range(9):
        with pytest.raises(Unauthorized, match="was revoked"):
            who(keys, text)
    assert book.asked == 2, "that it is refused is remembered as well"


def test_a_key_of_a_deleted_owner_costs_one_query_a_minute(
    keys: Keys, book: CountingBook, database: Database, clock: Clock, team: str
) -> None:
    text, other = made(book, team)[1], made(book, team)[1]
    Deletions(database).start(team)
    Deletions(database).finish(team)
    keys.refresh()
    for _ in range(9):
        with pytest.raises(Unauthorized, match="is unknown"):
            who(keys, text)
    assert book.asked == 1, "that nobody has it is remembered as well"
    with pytest.raises(Unauthorized, match="is unknown"):
        who(keys, other)
    clock.now += 61
    with pytest.raises(Unauthorized, match="is unknown"):
        who(keys, text)
    assert book.asked == 3


def test_a_key_is_found_that_was_made_while_it_was_looked_for(
    keys: Keys, book: CountingBook, database: Database, team: str
) -> None:
    """Never in practice, as nobody has its text before: an older answer must not outlive it."""
    text = made(book, team)[1]
    row = select(KeyRow).where(KeyRow.sha256 == digest_of(text))
    with database.transaction() as session:
        kept = session.scalars(row).one()
        session.delete(kept)
    with pytest.raises(Unauthorized, match="is unknown"):
        who(keys, text)
    with changing(database) as (session, revision):
        make_transient(kept)
        kept.revision = revision
        session.add(kept)
    keys.refresh()
    assert who(keys, text).owner == team


def test_another_process_feels_it_within_a_second(database: Database, team: str) -> None:
    here, there = KeyBook(database), Keys("the-key", KeyBook(database))
    key_id, text = made(here, team)
    with watching_keys(there):
        who(there, text)
        here.revoke(team, key_id)
        time.sleep(1)
        with pytest.raises(Unauthorized):
            who(there, text)


def test_no_request_waits_for_the_first_reading_of_shares_and_limits(
    database: Database, team: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Owners(database).create("other")
    Shares(database).give("other", "pirate", team, "use", by=SERVER_ADMIN)
    book = LimitBook(database, Limits())
    book.change(team, {"requests_a_minute": 7})
    limits, shares = RequestLimits(DatabaseStore(database), book), Shares(database)
    with watching_keys(Keys("the-key", KeyBook(database)), limits, shares, refresh_s=60):
        monkeypatch.setattr(database, "reading", None)  # whoever asks it now fails
        assert shares.given(team, "other", "pirate") == "use"
        assert limits.of(team).requests_a_minute == 7


@pytest.mark.parametrize("what", ["archived", "left", "deleted", "demoted"])
def test_what_a_key_may_do_follows_its_owner_and_user(
    keys: Keys, book: KeyBook, database: Database, team: str, what: str
) -> None:
    people = People(database)
    ann = people.add(team, "admin", user_id=None, email="Ann@Example.com").user.id
    text = made(book, team, user=ann, scopes=["admin", "files"])[1]
    assert who(keys, text).manages(team) and not who(keys, text).manages("default")
    if what == "demoted":
        people.change_member(team, ann, service=False, role="member")
        keys.refresh()
        assert who(keys, text).scopes == {"files"} and not who(keys, text).manages(team)
        return
    if what == "archived":
        Owners(database).archive(team)
    elif what == "left":
        people.remove(team, ann, service=False)
    else:
        people.delete_user(ann)
    keys.refresh()
    with pytest.raises(Unauthorized):
        who(keys, text)


def test_a_key_expires(keys: Keys, book: KeyBook, clock: Clock, team: str) -> None:
    text = made(book, team, life_s=30)[1]
    who(keys, text)
    clock.now += 31
    with pytest.raises(Unauthorized, match="expired"):
        who(keys, text)


def test_a_rotated_key_has_its_grace(keys: Keys, book: KeyBook, clock: Clock, team: str) -> None:
    key_id, old = made(book, team, scopes=["jobs"])
    who(keys, old)
    new, text, replaced = book.rotate(team, key_id, by=SERVER_ADMIN, grace_s=30)
    keys.refresh()
    assert (new.scopes, replaced.id) == (("jobs",), key_id)
    assert who(keys, text).scopes == who(keys, old).scopes == {"jobs"}
    clock.now += 31
    with pytest.raises(Unauthorized, match="expired"):
        who(keys, old)
    assert who(keys, text).key == new.id


def test_without_the_database_known_keys_go_on_for_their_minute(
    keys: Keys, book: CountingBook, clock: Clock, team: str
) -> None:
    known, unknown = made(book, team)[1], made(book, team)[1]
    who(keys, known)
    book.away = True
    clock.now += 50
    assert who(keys, known).owner == team
    with pytest.raises(Unavailable):
        who(keys, unknown)
    clock.now += 11
    with pytest.raises(Unavailable):
        who(keys, known)


def test_last_use_is_written_at_most_once_a_minute(
    keys: Keys, book: KeyBook, clock: Clock, team: str
) -> None:
    key_id, text = made(book, team)
    assert book.get(team, key_id).last_used_at is None
    who(keys, text)
    keys.write_uses()
    first = int(clock.now)
    assert book.get(team, key_id).last_used_at == first
    book.note_use({1: first + 59})
    assert book.get(team, key_id).last_used_at == first
    book.note_use({1: first + 60})
    assert book.get(team, key_id).last_used_at == first + 60


def test_only_the_digest_is_kept(database: Database, book: KeyBook, team: str) -> None:
    text = made(book, team)[1]
    found = book.find(digest_of(text))
    assert found.principal is not None and len(text) == 52
    assert text[9:] not in repr(found) + repr(book.list(team))


def test_a_known_key_costs_little(keys: Keys, book: KeyBook, team: str) -> None:
    """50 us on a free machine; the median, as this one is busy."""
    header = f"Bearer {made(book, team)[1]}"

    async def median() -> float:
        times = []
        for _ in range(2000):
            began = time.perf_counter()
            await keys.principal(header, at_once)
            times.append(time.perf_counter() - began)
        return sorted(times)[1000]

    assert asyncio.run(median()) < 50e-6
