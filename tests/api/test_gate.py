"""What every request passes: ids, keys, sizes, and errors' one shape."""

import json
import re
from collections.abc import Iterator

import httpx
import openai
import pytest

from server.tenancy.keys import Keys
from tests.api.conftest import MAX_BODY, MAX_FILE
from tests.api.running import Running, Serve, eventually

JSON = {"content-type": "application/json"}


def test_a_request_keeps_its_id(server: Running) -> None:
    answer = server.http.get("/health", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"


def test_a_request_without_a_usable_id_gets_one(server: Running) -> None:
    first = server.http.get("/health").headers["x-request-id"]
    second = server.http.get("/v1/nowhere", headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert first.startswith("req_") and second.startswith("req_") and first != second


@pytest.mark.parametrize(
    ("method", "path", "status", "logged"),
    [
        ("GET", "/health", 200, "/health"),
        ("GET", "/v1/models?after=secret", 200, "/v1/models"),
        ("POST", "/v1/chat/completions", 400, "/v1/chat/completions"),
        ("GET", "/v1/a%0Ab%1B", 404, "/v1/a%0Ab%1B"),
        ("GET", "/" + "x" * 300, 404, "/" + "x" * 199),
    ],
)
def test_a_request_is_logged_without_its_query_and_body(
    server: Running,
    method: str,
    path: str,
    status: int,
    logged: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    headers = {"x-request-id": "mine-2", "authorization": "Bearer secret"}
    with caplog.at_level("INFO", "server.api.gate"):
        server.http.request(method, path, headers=headers, json={"messages": "secret"})
        assert eventually(lambda: "mine-2" in caplog.text)
    (message,) = [record.getMessage() for record in caplog.records if "mine-2" in record.message]
    assert re.fullmatch(rf"{method} {re.escape(logged)} {status} \d+ ms mine-2", message)
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nowhere", 404, "unknown_url"),
        ("GET", "/nowhere", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/files", 405, "method_not_allowed"),
        ("GET", "/v1/models/", 404, "model_not_found"),
    ],
)
def test_a_wrong_address_has_the_same_shape(
    server: Running, method: str, path: str, status: int, code: str
) -> None:
    answer = server.http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"null", b'{"a": "\xff"}', b"[" * 5000])
def test_a_body_that_is_not_an_object_is_refused(server: Running, body: bytes) -> None:
    answer = server.http.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"messages": [1] * 5000}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a\ud800"}]}, None),
        ("chat/completions", {f"x{i}": 1 for i in range(70)}, None),
        ("chat/completions", {"\ud800": 1, "messages": []}, None),
        ("completions", {"prompt": ["a"] * 1025}, "prompt"),
        ("completions", {"prompt": [["a"]] * 1000}, "prompt"),
        ("completions", {"prompt": "a\udc00"}, "prompt"),
        ("completions", {"prompt": ["a", "a\udc00"]}, "prompt"),
        ("completions", {"prompt": "a", "stop": ["a"] * 65}, "stop"),
        ("completions", {"prompt": "a", "stop": "a\udc00"}, "stop"),
        ("completions", {"prompt": "a", "logit_bias": {str(i): 1 for i in range(1025)}}, None),
        ("completions", {"prompt": "a", "model": "\ud800"}, "model"),
        ("fine_tuning/jobs", {"training_file": "\ud800"}, "training_file"),
    ],
)
def test_a_hostile_body_is_refused_in_one_short_answer(
    server: Running, path: str, body: dict[str, object], param: str | None
) -> None:
    answer = server.http.post(
        f"/v1/{path}", content=json.dumps({"model": "base"} | body), headers=JSON
    )
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert len(answer.content) < 1000
    assert param is None or error["param"] == param


def test_a_body_that_does_not_say_that_it_is_json(server: Running) -> None:
    answer = server.http.post("/v1/completions", content=b'{"model": "base", "prompt": "a"}')
    assert answer.status_code == 400
    assert "content-type" in answer.json()["error"]["message"]


class TestKeys:
    @pytest.fixture
    def locked(self, serve: Serve) -> Running:
        return serve(keys=Keys("the key"))

    @pytest.mark.parametrize("header", [None, "Bearer", "Basic the key", "Bearer x", "Bearer the"])
    def test_a_wrong_key_is_refused(self, locked: Running, header: str | None) -> None:
        headers = {} if header is None else {"authorization": header}
        for path in ("/v1/models", "/v1/nowhere", "/v1/files"):
            answer = locked.http.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"

    def test_the_sdk_sees_an_authentication_error(self, locked: Running) -> None:
        with pytest.raises(openai.AuthenticationError):
            locked.sdk.models.list()

    def test_the_key_opens(self, locked: Running) -> None:
        sdk = locked.sdk.with_options(api_key="the key")
        assert sdk.models.list().data[0].id == "base"

    def test_the_operators_pages_ask_for_none(self, locked: Running) -> None:
        for path in ("/health", "/ready", "/metrics"):
            assert locked.http.get(path).status_code == 200


class TestSizes:
    def test_a_large_body_is_refused(self, server: Running) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            server.sdk.completions.create(model="base", prompt="a" * MAX_BODY)
        assert caught.value.status_code == 413
        assert caught.value.code == "request_too_large"

    def test_a_large_body_of_untold_length_is_refused(self, server: Running) -> None:
        def body() -> Iterator[bytes]:
            for _ in range(40):
                yield b" " * 1000

        answer = server.http.post(
            "/v1/chat/completions", content=body(), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413

    def test_a_large_file_is_refused(self, server: Running) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            server.sdk.files.create(file=("big.jsonl", b"x" * (MAX_FILE + 1)), purpose="fine-tune")
        assert caught.value.status_code == 413
        assert server.sdk.files.list().data == []

    def test_a_much_larger_file_is_refused(self, server: Running) -> None:
        big = b"x" * (3 * MAX_FILE + 100_000)
        with pytest.raises(openai.APIStatusError) as caught:
            server.sdk.files.create(file=("big.jsonl", big), purpose="fine-tune")
        assert caught.value.status_code == 413


def test_the_server_goes_on_after_bad_requests(server: Running) -> None:
    for _ in range(3):
        server.http.post("/v1/chat/completions", content=b"{")
    with httpx.Client(base_url=server.url) as other:
        assert other.get("/v1/models").status_code == 200


NUMBERS = ["1e999", "-1e309", "9" * 5000, "NaN", "-Infinity", "1" + "0" * 400 + ".5"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("chat/completions", "temperature"),
        ("chat/completions", "user"),
        ("completions", "prompt"),
        ("completions", "seed"),
        ("fine_tuning/jobs", "seed"),
        ("fine_tuning/jobs", "verandah"),
    ],
)
def test_a_number_that_nothing_can_hold_is_named(
    server: Running, path: str, field: str, number: str
) -> None:
    for kind in ("application/json", "application/json; charset=utf-8", "application/x+json"):
        body = f'{{"model": "base", "{field}": {{"a": [{number}]}}}}'
        answer = server.http.post(f"/v1/{path}", content=body, headers={"content-type": kind})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_json"
        assert (
            f"holds {'' if 'N' in number or 'I' in number else 'the number '}{number[:20]}"
            in (answer.json()["error"]["message"])
        )


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": "a", "logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ("completions", {"prompt": "a", "logit_bias": {"\u0663": 1}}, "logit_bias"),
        ("completions", {"prompt": "a", "temperature": 10**300}, "temperature"),
        ("completions", {"prompt": "a", "max_tokens": 10**300}, "max_tokens"),
        ("completions", {"prompt": [10**300]}, "prompt"),
        ("fine_tuning/jobs", {"training_file": "f", "verandah": {"rank": 10**300}}, "rank"),
        ("fine_tuning/jobs", {"training_file": "f", "verandah": {"dropout": 10**300}}, "dropout"),
        ("fine_tuning/jobs", {"training_file": "f", "verandah": {"k" * 9000: 1}}, "k" * 200),
        ("fine_tuning/jobs", {"training_file": "f" * 9000, "suffix": 1}, "suffix"),
    ],
)
def test_a_number_out_of_range_is_named(
    server: Running, path: str, body: dict[str, object], param: str
) -> None:
    answer = server.http.post(f"/v1/{path}", json={"model": "base"} | body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert len(answer.content) < 1500


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("files?limit=", "1e3"),
        ("files?limit=", str(10**30)),
        ("files?limit=", "9" * 5000),
        ("fine_tuning/jobs?limit=", "0x10"),
        ("fine_tuning/jobs?limit=", "-1"),
        ("adapters?limit=", "NaN"),
        ("models?limit=", "9" * 5000),
        ("fine_tuning/jobs?metadata[a]=", "v" * 513),
        ("fine_tuning/jobs?metadata[a]=", "%00"),
        ("fine_tuning/jobs?metadata[%00]=", "a"),
        ("fine_tuning/jobs?", "&".join(f"metadata[k{number}]=v" for number in range(1000))),
    ],
)
def test_a_query_out_of_range_is_named(server: Running, path: str, value: str) -> None:
    answer = server.http.get(f"/v1/{path}{value}")
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] in ("limit", "metadata")
    assert len(answer.content) < 1000


def test_a_compressed_body_is_refused(server: Running) -> None:
    headers = JSON | {"content-encoding": "gzip"}
    answer = server.http.post("/v1/completions", content=b"\x1f\x8b", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert "'gzip'" in answer.json()["error"]["message"]
