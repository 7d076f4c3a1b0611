"""An owner has so many keys, users and service accounts, and no more."""

from collections.abc import Callable
from contextlib import closing

import pytest

from server.db.session import Database, ensure_owner
from server.errors import Conflict
from server.tenancy import key_book, people
from server.tenancy.found_key import ADMIN
from server.tenancy.key_book import KeyBook
from server.tenancy.owners import Owners
from server.tenancy.people import People
from server.tenancy.principal import DEFAULT_OWNER, SERVER_ADMIN
from server.tenancy.sign_in.group_map import Grants
from server.tenancy.sign_in.identities import Identities, Person


@pytest.fixture
def book(database: Database, monkeypatch: pytest.MonkeyPatch) -> KeyBook:
    monkeypatch.setattr(key_book, "MOST_KEYS", 3)
    monkeypatch.setattr(key_book, "MOST_OF_PERSON", 2)
    monkeypatch.setattr(people, "MOST_MEMBERS", 2)
    with database.transaction() as session:
        ensure_owner(session, DEFAULT_OWNER, 1)
    for name in ("a", "b"):
        Owners(database).create(name)
    return KeyBook(database)


def make(book: KeyBook, owner: str = "a", **options: object) -> str:
    return book.create(owner, "laptop", by=SERVER_ADMIN, **options)[0].id  # type: ignore[arg-type]


def test_an_owner_has_so_many_keys_in_force(database: Database, book: KeyBook) -> None:
    account = People(database).add_service_account("a", "bot").user.id
    first, _, _ = make(book), make(book, user=account), make(book, life_s=60)
    for more in ({}, {"user": account}):
        with pytest.raises(Conflict, match=r"project 'a' has 3 keys .* revoke"):
            make(book, **more)
    make(book, "b")
    make(book, DEFAULT_OWNER, kind=ADMIN)
    book.revoke("a", first)
    make(book)


def test_keys_that_have_expired_do_not_count(database: Database, book: KeyBook) -> None:
    for _ in range(3):
        make(book, life_s=1)
    url = database._engine.url.render_as_string(hide_password=False)
    with closing(Database(url, clock=lambda: 9e9)) as later:
        make(KeyBook(later))


def test_a_full_owner_may_still_replace_a_key_once(book: KeyBook) -> None:
    old = [make(book) for _ in range(3)]
    new = book.rotate("a", old[0], by=SERVER_ADMIN, grace_s=60)[0]
    with pytest.raises(Conflict, match="project 'a' has 3 keys"):
        book.rotate("a", new.id, by=SERVER_ADMIN, grace_s=60)
    book.revoke("a", old[0])
    assert book.rotate("a", new.id, by=SERVER_ADMIN, grace_s=0)[0].name == "laptop"


def test_a_person_has_so_many_and_takes_none_of_the_owners(
    database: Database, book: KeyBook
) -> None:
    ann, bob = (
        People(database).add("a", "member", user_id=None, email=f"{name}@example.com").user.id
        for name in ("ann", "bob")
    )
    for _ in range(2):
        make(book, user=ann)
    with pytest.raises(Conflict, match=f"user '{ann}' has 2 keys for project 'a'"):
        make(book, user=ann)
    for _ in range(3):
        make(book)
    make(book, user=bob)
    People(database).add("b", "member", user_id=ann, email=None)
    make(book, "b", user=ann)


def test_an_owner_has_so_many_users_and_service_accounts(database: Database, book: KeyBook) -> None:
    them = People(database)

    def person(number: int) -> str:
        address = f"{number}@example.com"
        return them.add("a", "member", user_id=None, email=address).user.id

    def account(number: int) -> str:
        return them.add_service_account("a", f"bot {number}").user.id

    kinds: list[tuple[Callable[[int], str], bool, str]] = [
        (person, False, "users who were added by hand"),
        (account, True, "service accounts"),
    ]
    for make_one, service, what in kinds:
        first, _ = make_one(1), make_one(2)
        with pytest.raises(Conflict, match=f"project 'a' has 2 {what} already"):
            make_one(3)
        them.remove("a", first, service=service)
        make_one(3)


def test_users_of_groups_take_no_room(database: Database, book: KeyBook) -> None:
    for number in range(3):
        person = Person("https://login.example", f"u{number}")
        Identities(database).sign_in(person, Grants({"a": "member"}, False))
    for number in range(2):
        People(database).add("a", "member", user_id=None, email=f"{number}@example.com")
    assert len(People(database).members("a", service=False)[0]) == 5
