"""The OpenAPI document tells all of the API, and the HTTP reference of the site all of that."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from server.app import http_api
from tools.site.openapi_page import openapi_page

Json = dict[str, Any]
PAGE = http_api().openapi()
SCHEMAS = PAGE["components"]["schemas"]
OPEN = {"/health", "/ready", "/metrics"}


def operations() -> Iterator[tuple[str, Json]]:
    for path, of_path in PAGE["paths"].items():
        for verb, operation in of_path.items():
            yield f"{verb.upper()} {path}", operation


def test_every_route_and_field_is_there() -> None:
    page = openapi_page(PAGE)
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert len(headings) == sum(len(routes) for routes in PAGE["paths"].values())
    assert "## POST /v1/fine_tuning/jobs" in headings
    for field in SCHEMAS["JobRequest"]["properties"]:
        assert f"| `{field}` | body |" in page
    roles = "'system', 'developer', 'user', 'assistant'"
    assert f"| `role` | `messages` | {roles} | required; Who speaks. |" in page


def test_every_field_has_a_description() -> None:
    bare = [
        f"{name}.{field}"
        for name, schema in SCHEMAS.items()
        for field, told in schema.get("properties", {}).items()
        # A field that is an object may leave it to the object.
        if not told.get("description") and not described(told)
    ]
    assert bare == []


def described(told: Json) -> bool:
    name = told.get("$ref", "").rpartition("/")[2]
    return bool(name) and bool(SCHEMAS[name].get("description"))


def test_every_parameter_answer_and_endpoint_has_a_description() -> None:
    for name, operation in operations():
        told = [*operation.get("parameters", ()), *operation["responses"].values(), operation]
        assert all(one.get("description") for one in told), name


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(PAGE)))
    assert named == SCHEMAS.keys()


def test_the_statuses_are_those_that_are_sent() -> None:
    for name, operation in operations():
        statuses = {int(status) for status in operation["responses"]}
        assert {200, 400, 413, 500, 503} <= statuses and 422 not in statuses, name
        names_one = "{" in name or name.endswith("/usage/limits")  # by its `project_id`
        assert names_one == (404 in statuses) or "POST" in name, name
        # /metrics needs no key, and refuses a wrong one.
        assert (401 in statuses) == (name.split()[1] not in OPEN - {"/metrics"}), name
    assert {429, 504} <= {
        int(it) for it in PAGE["paths"]["/v1/chat/completions"]["post"]["responses"]
    }


@pytest.mark.parametrize(
    ("path", "types"),
    [
        ("/v1/chat/completions", {"application/json", "text/event-stream"}),
        ("/v1/completions", {"application/json", "text/event-stream"}),
        ("/v1/fine_tuning/jobs/{job_id}/events", {"application/json", "text/event-stream"}),
        ("/v1/adapters/{adapter_id}/analysis", {"application/json", "text/event-stream"}),
        ("/v1/adapters/{adapter_id}/export", {"application/zip"}),
        ("/v1/files/{file_id}/content", {"application/octet-stream"}),
        ("/metrics", {"text/plain"}),
    ],
)
def test_content_types(path: str, types: set[str]) -> None:
    (operation,) = PAGE["paths"][path].values()
    assert operation["responses"]["200"]["content"].keys() == types


def test_only_a_server_with_a_key_asks_for_it() -> None:
    secured = {name.split()[1] for name, operation in operations() if operation.get("security")}
    assert secured == PAGE["paths"].keys() - OPEN
    assert PAGE["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    without = http_api(keyed=False).openapi()
    assert "securitySchemes" not in without["components"]
    assert not any("security" in it for of in without["paths"].values() for it in of.values())
