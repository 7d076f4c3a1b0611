"""Every operation says which scope of a key it needs."""

import re

import pytest

from server.api.operation_scopes import SCOPES_BY_OPERATION
from server.tenancy.key_book import KeyBook
from server.tenancy.keys import Keys
from server.tenancy.principal import SCOPES, SERVER_ADMIN, Scope
from tests.api.running import Running, Serve


def test_each_operation_has_its_line_and_no_other_has(server: Running) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    operations = {
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method in methods
        if path.startswith("/v1/")
    }
    assert {name.replace(":path", "") for name in SCOPES_BY_OPERATION} == operations


@pytest.fixture
def locked(serve: Serve, server: Running) -> Running:
    return serve(keys=Keys("the key", server.services.tenants.keys))


def key_for(book: KeyBook, *scopes: Scope) -> str:
    return book.create("default", "key", by=SERVER_ADMIN, scopes=scopes)[1]


def test_a_key_without_the_scope_is_refused_before_the_body_is_read(locked: Running) -> None:
    book = locked.services.tenants.keys
    headers = {
        scope: {"authorization": f"Bearer {key_for(book, scope)}", "content-type": "a/json"}
        for scope in SCOPES
    }
    for operation, needed in SCOPES_BY_OPERATION.items():
        method, path = operation.split()
        url = re.sub(r"\{[^}]*\}", "x", path)
        for scope in SCOPES:
            answer = locked.http.request(method, url, headers=headers[scope], content=b"{")
            refused = (
                answer.status_code == 403 and answer.json()["error"]["code"] == "missing_scope"
            )
            assert refused is (scope not in needed), (operation, scope, answer.text)
