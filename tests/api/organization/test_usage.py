"""What keys use is counted, and OpenAI's SDK and the command read it."""

import csv
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai import OpenAI

from server.__main__ import main
from server.db.usage_rows import COUNTS, HOUR_S, UsageKey
from server.tenancy.keys import Keys
from server.tenancy.principal import SERVER_ADMIN, Scope
from server.tenancy.usage.usage_book import DAY_S, UsageWriter
from server.tenancy.usage.usage_counts import Hourly
from tests.api.running import Publish, Running, Serve, eventually

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
TODAY = int(time.time()) // DAY_S * DAY_S


@dataclass
class Team:
    """A server with a key of team-a and one of the server's admin."""

    server: Running
    writer: UsageWriter
    key: str
    value: str
    sdk: Any  # the types of answers are unions of all that OpenAI ever counts
    admin: Any


@pytest.fixture
def team(serve: Serve, server: Running, publish: Publish) -> Iterator[Team]:
    tenants = server.services.tenants
    tenants.owners.create("team-a")
    scopes: tuple[Scope, ...] = ("models.use", "usage.read")
    key, value = tenants.keys.create("team-a", "k", by=SERVER_ADMIN, scopes=scopes)
    publish("pirate", "team-a")
    locked = serve(keys=Keys("the key", tenants.keys))
    writer = UsageWriter(tenants.usage, server.services.usage)
    with OpenAI(base_url=f"{locked.url}/v1", api_key=value, max_retries=0, timeout=10) as sdk:
        mine = sdk.with_options(admin_api_key=value)
        yield Team(locked, writer, key.id, value, mine, sdk.with_options(admin_api_key="the key"))


def test_requests_are_counted_by_key_and_model(team: Team) -> None:
    answer = team.sdk.chat.completions.create(model="pirate", messages=HELLO, max_tokens=3)
    chunks = team.sdk.chat.completions.create(
        model="base", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    counted = [*chunks][-1].usage
    assert answer.usage is not None and counted is not None
    for wrong in ({"model": "nobody"}, {"model": "base", "temperature": 9}):
        with pytest.raises(openai.APIStatusError):
            team.sdk.chat.completions.create(messages=HELLO, **wrong)
    team.writer.write()
    usage = team.sdk.admin.organization.usage
    told = usage.completions(start_time=TODAY, group_by=["project_id", "api_key_id", "model"])
    assert (told.object, told.has_more, len(told.data)) == ("page", False, 1)
    bucket = told.data[0]
    assert (bucket.start_time, bucket.end_time) == (TODAY, TODAY + DAY_S)
    assert {(it.project_id, it.api_key_id) for it in bucket.results} == {("team-a", team.key)}
    by_model = {it.model: it for it in bucket.results}
    assert set(by_model) == {None, "base", "pirate"}
    pirate, base = by_model["pirate"], by_model["base"]
    assert (pirate.num_model_requests, base.num_model_requests) == (1, 1)
    assert pirate.input_tokens == answer.usage.prompt_tokens
    assert pirate.output_tokens == answer.usage.completion_tokens
    assert base.output_tokens == counted.completion_tokens
    assert by_model[None].num_refused_requests == 2
    sums = usage.completions(start_time=TODAY).data[0].results[0]
    assert sums.project_id is None and sums.num_model_requests == 2
    assert sums.input_tokens == pirate.input_tokens + base.input_tokens
    team.writer.write()
    assert usage.completions(start_time=TODAY).data[0].results[0] == sums, "counted once"


def test_a_stream_is_counted_while_it_runs_and_when_its_client_leaves(team: Team) -> None:
    usage = team.server.services.usage
    team.server.loop.pause_s, team.server.loop.text = 0.02, "a" * 200
    with team.sdk.chat.completions.create(model="base", messages=HELLO, stream=True) as stream:
        chunks = iter(stream)
        while not next(chunks).choices[0].delta.content:
            pass
        first = total_of(usage.take())
    assert first["requests"] == 1 and 1 <= first["completion"] < 200
    assert eventually(lambda: not usage._open)
    rest = total_of(usage.take())
    assert rest["requests"] == 0 and 1 <= first["completion"] + rest["completion"] < 200


def total_of(hourly: Hourly) -> dict[str, int]:
    return {name: sum(counts[name] for counts in hourly.values()) for name in COUNTS}


def test_an_owner_sees_its_own_usage_and_the_admin_all(team: Team) -> None:
    book = team.server.services.tenants.usage
    hour = TODAY
    counts = {"requests": 1, "prompt": 7}
    book.add("w", 1, {(hour, UsageKey(it, f"key_{it}")): counts for it in ("team-a", "team-b")})
    mine = team.sdk.admin.organization.usage
    assert mine.completions(start_time=TODAY).data[0].results[0].input_tokens == 7
    assert mine.completions(start_time=TODAY, project_ids=["team-b"]).data[0].results == []
    every = team.admin.admin.organization.usage
    results = every.completions(start_time=TODAY, group_by=["project_id"]).data[0].results
    assert [it.project_id for it in results] == ["team-a", "team-b"]
    some = every.completions(start_time=TODAY, api_key_ids=["key_team-b"], group_by=["api_key_id"])
    assert [it.api_key_id for it in some.data[0].results] == ["key_team-b"]
    assert every.completions(start_time=TODAY, models=["pirate"]).data[0].results == []
    assert every.completions(start_time=TODAY, batch=True).data[0].results == []


def test_pages_of_buckets(team: Team) -> None:
    book = team.server.services.tenants.usage
    since = TODAY - 3 * DAY_S
    hours = [since, since + 5 * HOUR_S, since + 26 * HOUR_S]
    book.add("w", 1, {(hour, UsageKey("team-a")): {"completion": 10} for hour in hours})
    usage = team.admin.admin.organization.usage
    first = usage.completions(start_time=since + 60, end_time=TODAY, limit=2)
    assert [bucket.start_time for bucket in first.data] == [since, since + DAY_S]
    assert [bucket.results[0].output_tokens for bucket in first.data] == [20, 10]
    assert first.has_more and first.next_page is not None
    rest = usage.completions(start_time=since + 60, end_time=TODAY, limit=2, page=first.next_page)
    assert [bucket.start_time for bucket in rest.data] == [since + 2 * DAY_S]
    assert (rest.has_more, rest.next_page) == (False, None)
    hourly = usage.completions(start_time=since, end_time=since + DAY_S, bucket_width="1h")
    assert [i for i, it in enumerate(hourly.data) if it.results] == [0, 5]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"start_time": TODAY, "bucket_width": "1m"}, "bucket_width"),
        ({"start_time": TODAY, "end_time": TODAY}, "end_time"),
        ({"start_time": TODAY, "limit": 32}, "limit"),
        ({"start_time": TODAY, "page": "x"}, "page"),
        ({"start_time": TODAY, "page": "0.0"}, "page"),
        ({"start_time": TODAY - 90 * DAY_S, "bucket_width": "1h"}, "start_time"),
        ({"start_time": -1}, "start_time"),
        ({"start_time": TODAY, "group_by[]": "owner"}, "group_by[]"),
        ({}, "start_time"),
    ],
)
def test_a_wrong_question_is_refused(team: Team, query: dict[str, str | int], param: str) -> None:
    headers = {"authorization": f"Bearer {team.value}"}
    path = "/v1/organization/usage/completions"
    answer = team.server.http.get(path, params=query, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)


def test_the_command_prints_a_table_and_csv(
    team: Team, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERANDAH_API_KEY", "the key")
    team.sdk.chat.completions.create(model="pirate", messages=HELLO, max_tokens=3)
    team.writer.write()

    def verandah(*arguments: str) -> str:
        assert main(["usage", *arguments, "--url", team.server.url]) == 0
        return capsys.readouterr().out

    today = time.strftime("%Y-%m-%d", time.gmtime(TODAY))
    assert verandah("--owner", "team-b").splitlines()[1:] == []
    assert verandah().splitlines()[1].split("\t")[:3] == [today, "team-a", "1"]
    options = "--csv", "--by", "owner,model", "--from", today, "--hourly"
    rows = [*csv.DictReader(io.StringIO(verandah(*options)))]
    assert [(row["owner"], row["model"], row["requests"]) for row in rows] == [
        ("team-a", "pirate", "1")
    ]
    assert rows[0]["from"].startswith(f"{today}T") and int(rows[0]["completion"]) > 0


@pytest.mark.parametrize("arguments", [["--by", "day"], ["--from", "soon"], ["--days", "0"]])
def test_a_wrong_option_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err


def test_metrics_name_owners_to_the_admin_alone(team: Team) -> None:
    team.sdk.chat.completions.create(model="pirate", messages=HELLO, max_tokens=3)

    def metrics(key: str) -> str:
        headers = {"authorization": f"Bearer {key}"}
        return team.server.http.get("/metrics", headers=headers).text

    named = metrics("the key")
    assert 'verandah:owner_requests_total{model_name="base",owner="team-a"} 1.0' in named
    assert 'adapter="pirate",model_name="base",owner="team-a"} 1.0' in named
    assert 'verandah:owner_requests_total{model_name="base",owner="other"} 0.0' in named
    for text in (metrics(team.value), team.server.http.get("/metrics").text):
        assert "verandah:adapters_stored" in text and "team-a" not in text
    assert (
        team.server.http.get("/metrics", headers={"authorization": "Bearer x"}).status_code == 401
    )
