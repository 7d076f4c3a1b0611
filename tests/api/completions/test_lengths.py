"""How long an answer may be, where more is asked for than fits behind the prompt."""

import pytest

from tests.api.running import Running, Serve

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, dict[str, object]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    TEXT: {"prompt": "hi"},
}
LENGTHS = [(CHAT, "max_tokens"), (CHAT, "max_completion_tokens"), (TEXT, "max_tokens")]


@pytest.mark.parametrize(("path", "field"), LENGTHS)
@pytest.mark.parametrize("length", [255, 9999, 2**31])
def test_the_answer_has_what_fits(server: Running, path: str, field: str, length: int) -> None:
    server.loop.text = "x" * 300
    body = {"model": "base", field: length, "min_tokens": length} | ASK[path]
    answer = server.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    usage = answer.json()["usage"]
    assert usage["total_tokens"] == server.loop.max_context
    params = server.loop.asked[0].params
    assert params.min_tokens == params.max_tokens == usage["completion_tokens"]


@pytest.mark.parametrize(("path", "field"), LENGTHS)
def test_a_server_may_refuse_long_answers(serve: Serve, path: str, field: str) -> None:
    server = serve(refuse_long_answers=True)
    answer = server.http.post(path, json={"model": "base", field: 9999} | ASK[path])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == field
    assert f"lower {field} from 9999 to " in error["message"]
    assert server.http.post(path, json={"model": "base"} | ASK[path]).status_code == 200


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize(("path", "field"), LENGTHS)
def test_a_prompt_that_leaves_no_room_is_an_error(
    serve: Serve, path: str, field: str, refuses: bool
) -> None:
    server = serve(refuse_long_answers=refuses)
    text = "a" * 300
    ask = {"prompt": text} if path == TEXT else {"messages": [{"role": "user", "content": text}]}
    answer = server.http.post(path, json={"model": "base", field: 9999} | ask)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    tokens = 300 if path == TEXT else 300 + len("user: \n")
    assert "256 tokens" in error["message"] and f"has {tokens}" in error["message"]
    assert "leaves no room" in error["message"]
