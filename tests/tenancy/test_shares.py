"""What others share is remembered whole, and listed up to a bound."""

import pytest

from server.db.session import Database
from server.tenancy import shares as shares_module
from server.tenancy.owners import Owners
from server.tenancy.principal import SERVER_ADMIN
from server.tenancy.shares import Share, Shares
from server.tenancy.visibility import ShareTo

GIVERS = [f"giver-{number}" for number in range(6)]


@pytest.fixture
def shares(database: Database, monkeypatch: pytest.MonkeyPatch) -> Shares:
    monkeypatch.setattr(shares_module, "MOST_LISTED", 3)
    for name in ("me", "other", *GIVERS):
        Owners(database).create(name)
    return Shares(database)


def give(shares: Shares, owner: str, whom: str, to: ShareTo = "use") -> Share:
    return shares.give(owner, "pirate", whom, to, by=SERVER_ADMIN)


def test_a_list_holds_the_newest_of_those_shared_with_all(shares: Shares) -> None:
    given = [give(shares, giver, "all") for giver in GIVERS]
    newest = [f"{giver}/pirate" for giver in GIVERS[3:]]
    assert shares.received("me") == shares.received("other") == newest
    assert shares.given("me", GIVERS[0], "pirate") == "use", "older ones can be used all the same"
    assert len(shares.list("me", received=True)[0]) == len(GIVERS)
    shares.end(GIVERS[5], given[5].id)
    assert shares.received("me") == [f"{giver}/pirate" for giver in GIVERS[2:5]]
    assert shares.given("me", GIVERS[5], "pirate") is None


def test_a_flood_to_all_hides_nothing_that_is_shared_by_name(shares: Shares) -> None:
    first = give(shares, GIVERS[0], "me")
    for giver in GIVERS[1:]:
        give(shares, giver, "all")
    assert shares.received("me") == [f"{giver}/pirate" for giver in (GIVERS[0], *GIVERS[3:])]
    assert shares.received("other") == [f"{giver}/pirate" for giver in GIVERS[3:]]
    shares.end(GIVERS[0], first.id)
    assert shares.received("me") == shares.received("other")


def test_those_shared_by_name_are_bounded_as_well(shares: Shares, database: Database) -> None:
    for giver in GIVERS:
        give(shares, giver, "me")
    newest = [f"{giver}/pirate" for giver in GIVERS[3:]]
    assert shares.received("me") == newest and shares.received("other") == []
    assert Shares(database).received("me") == newest, "as a process sees it that starts now"


def test_the_better_of_two_rights_counts(shares: Shares) -> None:
    give(shares, GIVERS[0], "all", "copy")
    give(shares, GIVERS[0], "me", "use")
    assert shares.given("me", GIVERS[0], "pirate") == "copy"
    assert shares.received("me") == [f"{GIVERS[0]}/pirate"]
    give(shares, GIVERS[0], "all", "use")
    assert shares.given("me", GIVERS[0], "pirate") == "use"
    assert shares.received(GIVERS[0]) == [], "nobody receives one's own"
