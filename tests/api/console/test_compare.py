"""Several answers come in one stream, and each is a request to the API as any other."""

import gzip
import json
import re
import threading
import time
from collections.abc import Mapping
from html import unescape
from typing import Any

import httpx
import pytest

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from server.console.model_search import MOST_FOUND
from server.tenancy.principal import DEFAULT_OWNER
from tests.api.console.conftest import SERVER_KEY, Browser, MakeKey
from tests.api.running import Publish, Running, eventually

STREAM = "/console/compare/stream"
OURS = {"sec-fetch-site": "same-origin"}


def body(model: str = "base", **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


def stream(client: httpx.Client, *bodies: Mapping[str, object]) -> list[dict[str, Any]]:
    answer = client.post(STREAM, json={"requests": bodies}, headers=OURS)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(it.removeprefix("data: ")) for it in answer.text.split("\n\n") if it]


def column(events: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    return [it["chunk"] for it in events if it["column"] == number and "chunk" in it]


def text(chunks: list[dict[str, Any]]) -> str:
    deltas = [it["choices"][0]["delta"] for it in chunks if it.get("choices")]
    return "".join(it.get("content") or "" for it in deltas)


def test_nine_answers_run_together_in_one_stream(server: Running, publish: Publish) -> None:
    server.loop.hold = threading.Event()
    names = [publish(f"a{number}").name for number in range(8)]
    asked = [body(it, logprobs=True, top_logprobs=2) for it in ["base", *names]]
    heard: list[list[dict[str, Any]]] = []
    reader = threading.Thread(target=lambda: heard.append(stream(server.http, *asked)))
    reader.start()
    assert eventually(lambda: len(server.loop.handles) == 9)  # none waits for another's end
    server.loop.hold.set()
    reader.join(10)
    [events] = heard
    for number, name in enumerate(["base", *names]):
        chunks = column(events, number)
        assert text(chunks) == "Hé!"
        assert chunks[0]["model"].split("@")[0] == name
        scores = [it["choices"][0]["logprobs"] for it in chunks if it["choices"]]
        tops = [token["top_logprobs"] for it in scores if it for token in it["content"]]
        assert tops and all(len(it) == 2 for it in tops)
        assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert [it["column"] for it in events if "done" in it] != []
    assert sorted(it["column"] for it in events if it.get("done")) == [*range(9)]


def test_what_is_wrong_with_one_is_told_in_its_column(server: Running) -> None:
    wrong: list[dict[str, object]] = [
        body("nobody"),
        body(temperature=9),
        body(surprise=1),
        {"model": "base"},
        {},
    ]
    events = stream(server.http, body(), *wrong)
    assert text(column(events, 0)) == "Hé!"
    for number, one in enumerate(wrong, 1):
        api = server.http.post("/v1/chat/completions", json=one | {"stream": True})
        assert column(events, number) == [api.json()]
        assert events.index({"column": number, "done": True})


def test_an_answer_that_fails_on_its_way_tells_it_too(server: Running) -> None:
    server.loop.failure, server.loop.failure_after = RuntimeError("kaput"), 2
    chunks = column(stream(server.http, body()), 0)
    assert text(chunks) == "H"
    assert chunks[-1]["error"]["code"] == "internal_error"


@pytest.mark.parametrize(
    "asked",
    [
        {"requests": []},
        {"requests": [body()] * 10},
        {"requests": [1]},
        {"requests": {}},
        {},
        [],
        {"requests": [body()], "more": 1},
    ],
)
def test_what_is_no_comparison_is_refused_as_by_the_api(server: Running, asked: object) -> None:
    answer = server.http.post(STREAM, json=asked, headers=OURS)
    assert (answer.status_code, server.loop.handles) == (400, [])
    assert answer.json()["error"]["message"]


def test_a_body_over_the_limit_is_refused(server: Running) -> None:
    long = {"requests": [body(messages=[{"role": "user", "content": "x" * 30_000}])]}
    answer = server.http.post(STREAM, json=long, headers=OURS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_leaving_cancels_all(server: Running) -> None:
    server.loop.text, server.loop.pause_s = "x" * 200, 0.05
    asked = {"requests": [body(max_tokens=200)] * 3}
    with server.http.stream("POST", STREAM, json=asked, headers=OURS) as answer:
        next(answer.iter_bytes())
    assert eventually(lambda: all(it.cancelled.is_set() for it in server.loop.handles))
    assert len(server.loop.handles) == 3


def test_each_answer_counts_against_the_limits(server: Running) -> None:
    server.services.tenants.limits.change("default", {"requests_a_minute": 2})
    server.services.limits.refresh()
    events = stream(server.http, body(), body(), body(), body())
    texts = [text(column(events, number)) for number in range(4)]
    assert sorted(texts) == ["", "", "Hé!", "Hé!"]
    refused = [it["chunk"] for it in events if "error" in it.get("chunk", {})]
    assert {it["error"]["code"] for it in refused} == {"rate_limit_exceeded"}


def test_no_more_run_at_once_than_the_owner_may(server: Running) -> None:
    server.services.tenants.limits.change("default", {"requests_at_once": 2})
    server.services.limits.refresh()
    server.loop.pause_s = 0.02
    events = stream(server.http, body(), body(), body())
    assert sorted(text(column(events, number)) for number in range(3)) == ["", "Hé!", "Hé!"]
    assert text(column(stream(server.http, body()), 0)) == "Hé!"  # the places came back


def test_each_answer_is_used_as_of_the_api(
    keyed: Running, browser: Browser, make_key: MakeKey, publish: Publish
) -> None:
    publish("pirate", "team-a")
    me = browser(make_key("team-a", "models.use"))
    stream(me, *[body()] * 6, body("pirate"), body("pirate@1"), body("nobody"))
    hourly = keyed.services.usage.take()
    counts = {at.model: counts for (_, at), counts in hourly.items() if at.owner == "team-a"}
    assert {model: it["requests"] for model, it in counts.items() if model} == {
        "base": 6,
        "pirate": 2,
    }
    assert counts["pirate"]["completion"] == 10
    assert counts[""]["refusals"] == 1


def test_another_owners_adapter_is_as_one_that_is_not_there(
    browser: Browser, make_key: MakeKey, publish: Publish
) -> None:
    publish("secret", "team-b")
    me = browser(make_key("team-a", "models.use"))
    events = stream(me, body("secret"), body("team-b/secret"), body("nobody"))
    codes = [column(events, number)[0]["error"]["code"] for number in range(3)]
    assert codes == ["model_not_found"] * 3
    assert "secret" not in me.get("/console/compare/models?q=s").text


@pytest.mark.parametrize("path", ["/console/compare", "/console/compare/models"])
def test_the_scope_is_needed(browser: Browser, make_key: MakeKey, path: str) -> None:
    assert browser(make_key("team-a", "files", "jobs")).get(path).status_code == 403
    assert browser(make_key("team-a", "models.use")).get(path).status_code == 200
    assert browser(None).get(path).status_code == 303


def test_the_stream_needs_the_scope_and_the_sites_own_page(
    keyed: Running, browser: Browser, make_key: MakeKey
) -> None:
    jobs = browser(make_key("team-a", "jobs")).post(STREAM, json={"requests": [body()]})
    assert (jobs.status_code, jobs.json()["error"]["code"]) == (403, "missing_scope")
    me = browser(SERVER_KEY)
    other = me.post(STREAM, json={"requests": [body()]}, headers={"sec-fetch-site": "cross-site"})
    assert (other.status_code, keyed.loop.handles) == (403, [])


NASTY = "<script>alert(1)</script>\"'&"


def test_a_link_fills_the_page_and_everything_is_escaped(server: Running) -> None:
    link = {
        "model": ["pirate", NASTY, "pirate"],
        "prompt": NASTY,
        "system": f"</textarea>{NASTY}",
        "temperature": "0.7",
        "max_tokens": "12",
    }
    page = server.http.get("/console/compare", params=link).text
    assert "<script>alert" not in page
    assert page.count("</textarea>") == page.count("<textarea")
    models = page.split("data-models='")[1].split("'")[0]
    assert json.loads(unescape(models)) == ["base", "pirate", NASTY]
    assert 'value="0.7"' in page and 'value="12"' in page
    assert server.loop.handles == []


def test_a_link_may_leave_the_base_out_and_names_nine_at_most(server: Running) -> None:
    link = {"model": [f"a{number}" for number in range(12)], "base": "0"}
    page = unescape(server.http.get("/console/compare", params=link).text)
    assert '["a0","a1"' in page and '"a9"' not in page.split("data-models")[1].split(">")[0]
    assert "a9, a10 and a11" in page or "a9, a10, a11" in page


@pytest.mark.parametrize(
    "query",
    [
        "temperature=3",
        "temperature=x",
        "top_p=-1",
        "max_tokens=0",
        "seed=1e9",
        f"seed={2**63}",
        "temperature=nan",
        "prompt=" + "x" * 17_000,
        "model=" + "x" * 300,
        "&".join(["model=a"] * 65),
        "surprise=1",
    ],
)
def test_a_wrong_link_says_what_is_wrong(server: Running, query: str) -> None:
    answer = server.http.get(f"/console/compare?{query}")
    assert answer.status_code == 400
    assert query.split("=")[0] in answer.text


def test_the_search_finds_parts_of_names_and_shows_few(server: Running, publish: Publish) -> None:
    for number in range(MOST_FOUND + 3):
        publish(f"mate-{number:02}")
    publish("first-mate")
    publish("first-mate")
    publish("other")
    found = server.http.get("/console/compare/models?q=MATE").text
    assert found.count("data-model=") == MOST_FOUND
    assert str(MOST_FOUND + 4) in found
    assert "other" not in found
    assert "no adapter yet" not in found
    versions = server.http.get("/console/compare/models?q=first-mate@").text
    assert versions.index("first-mate@2") < versions.index("first-mate@1")
    for nothing in ("none-such", "none@", "../x@", "<script>@"):
        answer = server.http.get("/console/compare/models", params={"q": nothing})
        assert answer.status_code == 200
        assert "data-model=" not in answer.text and "<script>" not in answer.text


def test_ten_thousand_adapters_are_searched_at_once(server: Running, store: AdapterStore) -> None:
    for number in range(10_000):
        version = store.path(AdapterRef(DEFAULT_OWNER, f"user-{number:05}", 1)).parent
        version.parent.mkdir(parents=True)
    for path, shown in (("/console/compare", 0), ("/console/compare/models?q=99", MOST_FOUND)):
        times = []
        for _ in range(5):
            began = time.process_time()
            page = server.http.get(path).text
            times.append(time.process_time() - began)
        assert page.count("data-model=") == shown
        assert min(times) < 0.1


def test_its_scripts_and_styles_are_small(server: Running) -> None:
    page = server.http.get("/console/compare").text
    addresses = re.findall(r'"(/console/static/[^"]+)"', page)
    assert len(addresses) >= 8
    sizes = [len(gzip.compress(server.http.get(it).content)) for it in addresses]
    assert sum(sizes) + len(gzip.compress(page.encode())) < 60_000
