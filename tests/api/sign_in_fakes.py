"""A provider that believes whoever says who they are, and what browsers do."""

from dataclasses import replace
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from server.errors import SignInFailed
from server.tenancy.sign_in.identities import Person
from server.tenancy.sign_in.pending import Pending

ISSUER = "https://login.example"


class TrustingProvider:
    """Whoever comes back with a code is the person of that code, again and again."""

    issuer = ISSUER

    def __init__(self) -> None:
        self.people: dict[str, Person] = {}

    def add(self, code: str, *groups: str, email: str = "") -> None:
        self.people[code] = Person(ISSUER, code, code.title(), email, groups)

    def regroup(self, code: str, *groups: str) -> None:
        self.people[code] = replace(self.people[code], groups=groups)

    async def address(self, pending: Pending, redirect: str) -> str:
        query = {"state": pending.state, "redirect_uri": redirect}
        return f"{ISSUER}/authorize?{urlencode(query)}"

    async def person(self, code: str, pending: Pending, redirect: str) -> Person:
        if code not in self.people:
            raise SignInFailed("the provider refused the sign-in ('invalid_grant'): begin again")
        return self.people[code]


def begin(browser: httpx.Client, query: str = "") -> str:
    """Open the sign-in. Returns the state that the provider is told."""
    answer = browser.get(f"/auth/login{query}")
    assert answer.status_code == 303, answer.text
    address = urlsplit(answer.headers["location"])
    assert f"{address.scheme}://{address.netloc}" == ISSUER
    return parse_qs(address.query)["state"][0]


def come_back(browser: httpx.Client, code: str, query: str = "") -> httpx.Response:
    """Sign in as the person of that code. Returns the last answer."""
    state = begin(browser, query)
    return browser.get("/auth/callback", params={"code": code, "state": state})
