"""Each page with each kind of key: what is answered, and that refused requests change nothing.

A new page needs its row in `page_rows.PAGES`. A page about another's thing is the page about what
does not exist, byte for byte but for the id.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from server.app import http_api
from server.tenancy.principal import SCOPES, Scope
from tests.api.tenants.asgi import Answer, Caller
from tests.api.tenants.conftest import filled
from tests.api.tenants.page_rows import NAMED, PAGES, PageRow
from tests.api.tenants.rows import Reach
from tests.api.tenants.test_attacks import ids_of_nobody, masked
from tests.api.tenants.town import SERVER_KEY, Team, Town

SERVERS = Reach.SERVER, Reach.ENGINE
OPEN = Reach.ANYBODY, Reach.KEY
ODD = b'{"prompt": "a", "completion": "b"}\n' * 10 + b"no JSON\n"

Expect = Callable[[PageRow], tuple[int, str]]
"""The status of an answer, and the code of its error; empty if it is none."""


class Visitor:
    """Sends what a page would, as a browser that is signed in with `key`."""

    def __init__(self, call: Caller, key: str | None, partial: bool = False) -> None:
        self._call = call
        self._headers = {"sec-fetch-site": "same-origin"}
        if key is not None:
            self._headers["cookie"] = f"__Host-verandah_console={key}"
        if partial:
            self._headers["hx-request"] = "true"

    def __call__(self, method: str, target: str, **body: Any) -> Answer:
        return self._call(method, target, headers=self._headers, **body)

    def ask(self, page: str, row: PageRow, ids: Mapping[str, str]) -> Answer:
        body: dict[str, Any] = {}
        if row.json is not None:
            body["json"] = _filled(row.json, ids)
        elif row.file is not None:
            body["files"] = {"file": ("a.jsonl", row.file)}
        elif page.startswith("POST"):
            body["data"] = _filled(row.form or {}, ids)
        return self(page.partition(" ")[0], filled(row.target, dict(ids)), **body)


def _filled(value: Any, ids: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_filled(one, ids) for one in value]
    if isinstance(value, Mapping):
        return {name: _filled(one, ids) for name, one in value.items()}
    return filled(value, dict(ids))


@pytest.fixture
def team(town: Town, team: Team) -> Team:
    """With a file of which one line is bad."""
    odd = town.services.files.create(team.id, "odd.jsonl", "fine-tune", io.BytesIO(ODD))
    team.ids["odd"] = odd.id
    return team


def test_each_page_has_its_row_and_no_other_has() -> None:
    found = [it.original_route for it in iter_route_contexts(http_api().routes)]
    routes = [it for it in found if isinstance(it, APIRoute) and "/console" in it.path]
    pages = {f"{method} {it.path}" for it in routes for method in it.methods or ()}
    assert pages == set(PAGES) and len(pages) > 70


def problems(
    town: Town,
    team: Team,
    call: Caller,
    key: str | Callable[[PageRow], str | None] | None,
    expect: Expect,
) -> dict[str, str]:
    """What went wrong, by page. After each change, all is put back."""
    town.save()
    found, before = {}, town.digest()
    for page, row in PAGES.items():
        visitor = Visitor(call, key(row) if callable(key) else key)
        answer = visitor.ask(page, row, team.ids)
        status, code = expect(row)
        status = status or row.status or (200 if page.startswith("GET") else 303)
        said = "" if answer.status == status else f"{answer.status} instead of {status}. "
        if code.encode() not in answer.content:
            said += f"It does not say {code}: {answer.content[-600:]!r} "
        changed = town.digest() != before
        if changed and (code or page.startswith("GET")):
            said += "It changed something. "
        if code and team.secret.encode() in answer.head + answer.content:
            said += "It told the secret."
        if said:
            found[page] = said
        if changed:
            town.restore()
            before = town.digest()
    return found


def test_without_a_good_key_everything_leads_to_the_sign_in(
    town: Town, team: Team, call: Caller
) -> None:
    def expect(row: PageRow) -> tuple[int, str]:
        return (0, "") if row.reach is Reach.ANYBODY else (303, "")

    assert problems(town, team, call, None, expect) == {}
    for key in ("wrong", town.key(team.id, SCOPES, state="revoked")):
        before = town.digest()
        for page, row in PAGES.items():
            if row.reach is not Reach.ANYBODY:
                answer = Visitor(call, key).ask(page, row, team.ids)
                led = b"location: /console/sign-in" in answer.head
                assert (answer.status, led, answer.content) == (303, True, b""), page
        assert town.digest() == before


def test_a_key_needs_each_scope(town: Town, team: Team, call: Caller) -> None:
    keys = {scope: town.key(team.id, [it for it in SCOPES if it != scope]) for scope in SCOPES}

    def check(missing: Callable[[PageRow], Scope | None]) -> None:
        def key(row: PageRow) -> str:
            return keys[missing(row) or SCOPES[0]]

        def expect(row: PageRow) -> tuple[int, str]:
            if missing(row) is not None:
                return 403, "missing_scope"
            return (403, "insufficient_permissions") if row.reach in SERVERS else (0, "")

        assert problems(town, team, call, key, expect) == {}

    check(lambda row: row.scopes[0] if row.scopes else None)
    check(lambda row: row.scopes[-1] if row.scopes else None)


def test_a_member_has_the_owners_things(town: Town, team: Team, call: Caller) -> None:
    def expect(row: PageRow) -> tuple[int, str]:
        if row.reach in SERVERS:
            return 403, "insufficient_permissions"
        return (403, "missing_scope") if "admin" in row.scopes else (0, "")

    assert problems(town, team, call, team.member, expect) == {}


def test_an_owners_admin_manages_the_owner(town: Town, team: Team, call: Caller) -> None:
    def expect(row: PageRow) -> tuple[int, str]:
        return (403, "insufficient_permissions") if row.reach in SERVERS else (0, "")

    assert problems(town, team, call, team.admin, expect) == {}


def test_the_servers_admin_manages_all_and_owns_the_default(
    town: Town, team: Team, call: Caller
) -> None:
    def expect(row: PageRow) -> tuple[int, str]:
        return (404, "not_found") if row.reach is Reach.THING else (0, "")

    assert problems(town, team, call, SERVER_KEY, expect) == {}


def test_another_owners_admin_finds_nothing(
    town: Town, team: Team, rival: Team, call: Caller
) -> None:
    def expect(row: PageRow) -> tuple[int, str]:
        if row.reach in SERVERS:
            return 403, "insufficient_permissions"
        return (404, "not_found") if row.reach in (Reach.THING, Reach.PROJECT) else (0, "")

    assert problems(town, team, call, rival.admin, expect) == {}


@pytest.mark.parametrize("partial", [False, True])
def test_what_is_anothers_is_as_what_does_not_exist(
    town: Town, team: Team, rival: Team, call: Caller, partial: bool
) -> None:
    """Also where it is named among one's own things. What succeeds is put back."""
    visitor, nobody = Visitor(call, rival.admin, partial), ids_of_nobody(team)
    nobody |= {"odd": nobody["file"], "gone": "gone-team-xx"}
    own = {f"own {kind}": it for kind, it in rival.ids.items()}
    asked = [(page, row) for page, row in PAGES.items() if row.reach not in OPEN] + [*NAMED]
    town.save()
    before, told = town.digest(), []

    def answered(page: str, row: PageRow, ids: Mapping[str, str]) -> tuple[int, bytes]:
        answer = visitor.ask(page, row, own | dict(ids))
        changed = town.digest() != before
        if changed:
            town.restore()
        if changed and answer.status >= 400:
            told.append(f"{page} changed something, and answered {answer}")
        return masked(answer, [*ids.values(), f"{ids['project']}/{ids['adapter']}"])

    for page, row in asked:
        foreign, unknown = answered(page, row, team.ids), answered(page, row, nobody)
        if foreign != unknown:
            told.append(f"{page} {row.target}: {foreign} and {unknown}")
        if team.secret.encode() in foreign[1] or foreign[0] >= 500:
            told.append(f"{page} {row.target}: {foreign}")
    assert "\n".join(told[:5]) == ""
