"""The HTTP reference of the site has every route and every field."""

from server.app import http_api
from tools.site.openapi_page import openapi_page


def test_every_route_and_field_is_there() -> None:
    document = http_api().openapi()
    page = openapi_page(document)
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert len(headings) == sum(len(routes) for routes in document["paths"].values())
    assert "## POST /v1/fine_tuning/jobs" in headings
    for field in document["components"]["schemas"]["JobRequest"]["properties"]:
        assert f"| `{field}` | body |" in page
    assert "| `role` | `messages` | 'system', 'developer', 'user', 'assistant' | required |" in page
