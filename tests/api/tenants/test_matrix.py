"""Each operation with each kind of key: what is answered, and that refused requests change nothing.

A new operation needs its row in `rows.MATRIX`.
"""

from collections.abc import Callable

from server.api.operation_scopes import SCOPES_BY_OPERATION
from server.app import http_api
from server.tenancy.principal import SCOPES, Scope
from tests.api.tenants.asgi import Answer
from tests.api.tenants.conftest import Send
from tests.api.tenants.rows import MATRIX, Reach, Row
from tests.api.tenants.town import SERVER_KEY, Team, Town

SERVERS = Reach.SERVER, Reach.ENGINE
OPEN = Reach.ANYBODY, Reach.KEY, Reach.THING  # to all of an owner's keys with the scope
SCOPES_OF = {name.replace(":path", ""): scopes for name, scopes in SCOPES_BY_OPERATION.items()}

Expect = Callable[[Row], tuple[int, str | None]]
"""The status of an answer, and the code of its error."""


def test_each_operation_has_its_row_and_no_other_has() -> None:
    paths = http_api().openapi()["paths"]
    operations = {f"{verb.upper()} {path}" for path, verbs in paths.items() for verb in verbs}
    assert operations == set(MATRIX)


def problem_of(answer: Answer, status: int, code: str | None) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if answer.status != status:
        return f"{answer.status} instead of {status}: {answer.content[:300]!r}"
    if code is None:
        return ""
    error = answer.json()["error"]
    right = set(error) == {"message", "type", "param", "code"} and error["message"]
    if not right or error["code"] != code:
        return f"not the error {code!r}: {answer.content[:300]!r}"
    return ""


def problems(
    town: Town, team: Team, send: Send, key: str | Callable[[str], str] | None, expect: Expect
) -> dict[str, str]:
    """What went wrong, by operation. After each change, all is put back."""
    town.save()
    found, before = {}, town.digest()
    for operation, row in MATRIX.items():
        sent = key(operation) if callable(key) else key
        status, code = expect(row)
        answer = send(operation, row, sent)
        said = problem_of(answer, status, code)
        changed = town.digest() != before
        if changed and (status >= 400 or operation.startswith("GET")):
            said += " It changed something."
        if status >= 400 and team.secret.encode() in answer.head + answer.content:
            said += " It told the secret."
        if said:
            found[operation] = said
        if changed:
            town.restore()
            before = town.digest()
    return found


def no_key(row: Row) -> tuple[int, str | None]:
    return (200, None) if row.reach is Reach.ANYBODY else (401, "invalid_api_key")


def wrong_key(row: Row) -> tuple[int, str | None]:
    return (200, None) if row.fails == 200 else (401, "invalid_api_key")


def test_without_a_good_key_nothing_is_answered(town: Town, team: Team, send: Send) -> None:
    assert problems(town, team, send, None, no_key) == {}
    for key in (
        "wrong",
        team.member[:-1] + ("a" if team.member[-1] != "a" else "b"),
        town.key(team.id, SCOPES, state="expired"),
        town.key(team.id, SCOPES, state="revoked"),
    ):
        assert problems(town, team, send, key, wrong_key) == {}, key


def test_a_key_needs_the_scope(town: Town, team: Team, send: Send) -> None:
    keys: dict[tuple[Scope, ...], str] = {}

    def without(operation: str) -> str:
        missing = SCOPES_OF.get(operation, ())
        if missing not in keys:
            keys[missing] = town.key(team.id, [one for one in SCOPES if one not in missing])
        return keys[missing]

    for operation in MATRIX:  # all are made before the tables are looked at
        without(operation)

    def expect(row: Row) -> tuple[int, str | None]:
        return (200, None) if row.reach is Reach.ANYBODY else (403, "missing_scope")

    assert problems(town, team, send, without, expect) == {}


def test_an_owners_member_has_the_owners_things(town: Town, team: Team, send: Send) -> None:
    def expect(row: Row) -> tuple[int, str | None]:
        if row.reach is Reach.ENGINE:
            return 403, "insufficient_permissions"
        return (200, None) if row.reach in OPEN else (403, "missing_scope")

    assert problems(town, team, send, team.member, expect) == {}


def test_an_owners_admin_manages_the_owner(town: Town, team: Team, send: Send) -> None:
    def expect(row: Row) -> tuple[int, str | None]:
        servers = row.reach in SERVERS
        return (403, "insufficient_permissions") if servers else (200, None)

    assert problems(town, team, send, team.admin, expect) == {}


def test_another_owners_admin_finds_nothing(
    town: Town, team: Team, rival: Team, send: Send
) -> None:
    def expect(row: Row) -> tuple[int, str | None]:
        if row.reach in SERVERS:
            return 403, "insufficient_permissions"
        return foreign(row) if row.reach in (Reach.THING, Reach.PROJECT) else (200, None)

    assert problems(town, team, send, rival.admin, expect) == {}
    assert send("POST /v1/completions", MATRIX["POST /v1/completions"], team.member).status == 200
    for operation, row in MATRIX.items():  # of what is answered nothing is the team's
        if row.reach in (Reach.ANYBODY, Reach.KEY, Reach.ADMINS):
            answer = send(operation, row, rival.admin)
            assert team.secret.encode() not in answer.head + answer.content, operation
            assert team.id.encode() not in answer.head + answer.content, operation


def foreign(row: Row) -> tuple[int, str | None]:
    if row.fails == 400:
        return 400, "invalid_value"
    named = row.target if row.body is None else f"{row.target}{row.body}"
    return 404, "model_not_found" if "<adapter>" in named else "not_found"


def test_the_servers_admin_manages_all_and_owns_the_default(
    town: Town, team: Team, send: Send
) -> None:
    def expect(row: Row) -> tuple[int, str | None]:
        return foreign(row) if row.reach is Reach.THING else (200, None)

    assert problems(town, team, send, SERVER_KEY, expect) == {}
