"""People are known by issuer and subject; what groups give comes and goes with them."""

import pytest

from server.db.session import Database, ensure_owner
from server.errors import SignInFailed
from server.tenancy.found_key import ADMIN
from server.tenancy.key_book import KeyBook
from server.tenancy.key_text import digest_of
from server.tenancy.owners import Owners
from server.tenancy.people import People
from server.tenancy.principal import DEFAULT_OWNER, SERVER_ADMIN
from server.tenancy.sign_in.group_map import Grants
from server.tenancy.sign_in.identities import Identities, Person
from tests.db.conftest import database, url

__all__ = ["database", "url"]

NOTHING = Grants({}, False)
ANN = Person("https://login.example", "u1", "Ann", "ann@example.com")


@pytest.fixture
def identities(database: Database) -> Identities:
    database.migrate()
    with database.transaction() as session:
        ensure_owner(session, DEFAULT_OWNER, 1)
    for name in ("a", "b"):
        Owners(database).create(name)
    return Identities(database)


def owners_of(database: Database, user: str) -> dict[str, str]:
    people = People(database)
    return {
        owner: member.role
        for owner in ("a", "b", DEFAULT_OWNER)
        for member in people.members(owner, service=False)[0]
        if member.user.id == user
    }


def test_memberships_come_and_go_with_groups_and_take_their_keys(
    database: Database, identities: Identities
) -> None:
    user = identities.sign_in(ANN, Grants({"a": "member", "gone": "member"}, False))
    book = KeyBook(database)
    _, text = book.create("a", "laptop", by=SERVER_ADMIN, user=user)
    assert owners_of(database, user) == {"a": "member"}
    assert identities.sign_in(ANN, Grants({"a": "admin", "b": "member"}, False)) == user
    assert owners_of(database, user) == {"a": "admin", "b": "member"}
    assert identities.sign_in(ANN, Grants({"b": "member"}, False)) == user
    assert owners_of(database, user) == {"b": "member"}
    assert "revoked" in book.find(digest_of(text)).problem
    with pytest.raises(SignInFailed, match="none of your groups"):
        identities.sign_in(ANN, NOTHING)
    assert owners_of(database, user) == {}


def test_memberships_by_hand_stay(database: Database, identities: Identities) -> None:
    user = identities.sign_in(ANN, Grants({"a": "member"}, False))
    people = People(database)
    people.add("b", "admin", user_id=user, email=None)
    people.change_member("a", user, service=False, role="admin")
    assert identities.sign_in(ANN, Grants({"a": "member", "b": "member"}, False)) == user
    assert owners_of(database, user) == {"a": "admin", "b": "admin"}
    assert identities.sign_in(ANN, NOTHING) == user
    assert owners_of(database, user) == {"a": "admin", "b": "admin"}


def test_strangers_leave_no_rows(database: Database, identities: Identities) -> None:
    for grants in (NOTHING, Grants({"missing": "admin"}, False)):
        with pytest.raises(SignInFailed, match="none of your groups"):
            identities.sign_in(ANN, grants)
    assert People(database).users()[0] == []


@pytest.mark.parametrize("email", ["ann@example.com", "Ann@Example.com"])
def test_a_verified_email_finds_who_was_added_by_it(
    database: Database, identities: Identities, email: str
) -> None:
    added = People(database).add("a", "member", user_id=None, email="ann@example.com").user
    known = Person(ANN.issuer, "u1", "Ann", email)
    assert identities.sign_in(known, NOTHING) == added.id
    assert People(database).user(added.id).name == "Ann"


def test_an_email_takes_over_nobody(database: Database, identities: Identities) -> None:
    """Of a person who has signed in before, nor without the provider's word for it."""
    member = Grants({"a": "member"}, False)
    ann = identities.sign_in(ANN, member)
    same_email = Person(ANN.issuer, "u2", "Eve", ANN.email)
    same_subject = Person("https://other.example", "u1", "Eve", ANN.email)
    eve, mallory = identities.sign_in(same_email, member), identities.sign_in(same_subject, member)
    assert len({ann, eve, mallory}) == 3
    assert People(database).user(eve).email is None
    invited = People(database).add("b", "admin", user_id=None, email="bob@example.com").user
    unverified = identities.sign_in(Person(ANN.issuer, "u3", "bob@example.com"), member)
    assert unverified != invited.id
    assert owners_of(database, unverified) == {"a": "member"}


def test_an_admin_of_the_server_by_groups_is_one_as_long_as_they_say(
    database: Database, identities: Identities
) -> None:
    user = identities.sign_in(ANN, Grants({DEFAULT_OWNER: "admin", "a": "member"}, True))
    people, book = People(database), KeyBook(database)
    _, text = book.create(DEFAULT_OWNER, "ops", by=SERVER_ADMIN, user=user, kind=ADMIN)
    found = book.find(digest_of(text)).principal
    assert people.user(user).role == "admin" and found is not None and found.server_admin
    identities.sign_in(ANN, Grants({"a": "member"}, False))
    assert people.user(user).role == "member"
    assert book.find(digest_of(text)).principal is None


def test_an_admin_of_the_server_by_hand_stays_one_until_demoted(
    database: Database, identities: Identities
) -> None:
    grants = Grants({DEFAULT_OWNER: "admin"}, True)
    people, book = People(database), KeyBook(database)
    user = identities.sign_in(ANN, Grants({DEFAULT_OWNER: "admin"}, False))
    people.set_role(user, "admin")
    _, text = book.create(DEFAULT_OWNER, "ops", by=SERVER_ADMIN, user=user, kind=ADMIN)
    identities.sign_in(ANN, grants)
    identities.sign_in(ANN, Grants({DEFAULT_OWNER: "admin"}, False))
    assert people.user(user).role == "admin"
    people.set_role(user, "member")
    assert "no admin of the server any more" in book.find(digest_of(text)).problem


def test_who_is_deleted_can_be_deleted_and_comes_back_as_another(
    database: Database, identities: Identities
) -> None:
    member = Grants({"a": "member"}, False)
    user = identities.sign_in(ANN, member)
    People(database).delete_user(user)
    assert identities.sign_in(ANN, member) != user
