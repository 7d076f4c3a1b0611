"""Text completions through the OpenAI SDK."""

import openai
import pytest

from tests.api.fakes import EOS
from tests.api.running import Publish, Running


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("ab", [b"ab"]),
        (["ab", "c"], [b"ab", b"c"]),
        ([104, 105], [b"hi"]),
        ([[104], [105, 105]], [b"h", b"ii"]),
    ],
)
def test_every_kind_of_prompt(server: Running, prompt: list[str], tokens: list[bytes]) -> None:
    server.loop.cached_tokens = 1
    answer = server.sdk.completions.create(model="base", prompt=prompt, max_tokens=4, n=2)
    assert [bytes(asked.prompt) for asked in server.loop.asked] == tokens
    assert [choice.index for choice in answer.choices] == list(range(2 * len(tokens)))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, tokens))
    assert answer.usage.completion_tokens == 4 * 2 * len(tokens)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == len(tokens)
    assert {choice.finish_reason for choice in answer.choices} == {"length"}


@pytest.mark.parametrize("prompt", ["", ["", "ab"]])
def test_an_empty_prompt_begins_a_text(server: Running, prompt: str | list[str]) -> None:
    answer = server.sdk.completions.create(model="base", prompt=prompt, max_tokens=9, echo=True)
    begun, *others = server.loop.asked
    assert begun.prompt == (EOS,)
    assert [bytes(asked.prompt) for asked in others] == [b"ab"][: len(others)]
    assert answer.choices[0].text == server.loop.text
    assert answer.usage is not None and answer.usage.prompt_tokens == 1 + 2 * len(others)


def test_more_answers_than_can_ever_wait_are_no_429(server: Running) -> None:
    server.loop.max_answers = 5
    with pytest.raises(openai.BadRequestError, match="6 answers") as caught:
        server.sdk.completions.create(model="base", prompt=["a", "b"], n=3)
    assert caught.value.param == "n"
    assert not server.loop.asked
    server.sdk.completions.create(model="base", prompt="a", n=5)


def test_the_default_length_is_openais(server: Running) -> None:
    server.sdk.completions.create(model="base", prompt="ab")
    assert server.loop.asked[0].params.max_tokens == 16


def test_near_the_end_of_the_context_the_default_shrinks(server: Running) -> None:
    server.sdk.completions.create(model="base", prompt="a" * (server.loop.max_context - 3))
    assert server.loop.asked[0].params.max_tokens == 3


def test_a_prompt_without_an_answer_may_fill_the_context(server: Running) -> None:
    prompt = "a" * server.loop.max_context
    answer = server.sdk.completions.create(model="base", prompt=prompt, max_tokens=0, echo=True)
    assert answer.choices[0].text == prompt


def test_a_stream_joins_to_the_whole_text(server: Running) -> None:
    chunks = list(
        server.sdk.completions.create(model="base", prompt=["ab", "c"], echo=True, stream=True)
    )
    for index, text in enumerate(["ab" + server.loop.text, "c" + server.loop.text]):
        mine = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert "".join(choice.text for choice in mine) == text
        assert mine[-1].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_scores_the_prompt(server: Running, stream: bool) -> None:
    answer = server.sdk.completions.create(
        model="base", prompt="héy", echo=True, logprobs=1, max_tokens=2, stream=stream
    )
    choices = (
        [chunk.choices[0] for chunk in answer]
        if isinstance(answer, openai.Stream)
        else [answer.choices[0]]
    )
    text = "".join(choice.text for choice in choices)
    assert text == "héyH\ufffd"[: len(text)]
    scores = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for score in scores for token in score.tokens or []]
    assert tokens == ["h", "\ufffd", "\ufffd", "y", "H", "\ufffd"]
    logprobs = [value for score in scores for value in score.token_logprobs or []]
    assert logprobs == [None, -0.5, -0.5, -0.5, -0.5, -0.5]
    tops = [top for score in scores for top in score.top_logprobs or []]
    assert tops[0] is None
    assert tops[-2] == {"x": -0.25, "H": -0.5}
    offsets = [offset for score in scores for offset in score.text_offset or []]
    assert offsets == [0, 1, 1, 2, 3, 4]
    assert server.loop.asked[0].params.prompt_logprobs


def test_a_prompt_can_be_scored_alone(server: Running) -> None:
    answer = server.sdk.completions.create(
        model="base", prompt="abc", echo=True, logprobs=0, max_tokens=0
    )
    choice = answer.choices[0]
    assert choice.text == "abc"
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5]
    assert choice.finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 0


def test_without_echo_the_prompt_is_not_scored(server: Running) -> None:
    server.sdk.completions.create(model="base", prompt="abc", logprobs=2)
    assert not server.loop.asked[0].params.prompt_logprobs
    assert server.loop.asked[0].params.top_logprobs == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [257]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [[104], [104, 257]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[104, False]]}, "prompt"),
        ({"prompt": [104.0]}, "prompt"),
        ({"prompt": [[104, 1.5]]}, "prompt"),
        ({"prompt": [None]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a" * 300}, "prompt"),
        ({"prompt": "a" * 300, "max_tokens": 0, "echo": True}, "prompt"),
        ({"prompt": "a" * 256, "max_tokens": 1}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 4}, "best_of"),
        ({"suffix": "the end"}, "suffix"),
    ],
)
def test_a_bad_field_is_named(server: Running, fields: dict[str, object], param: str) -> None:
    body = {"model": "base", "prompt": "ab"} | fields
    response = server.http.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert server.loop.asked == []


def test_when_one_prompt_is_refused_the_others_are_cancelled(
    server: Running, publish: Publish
) -> None:
    submit = server.loop.submit
    server.loop.pause_s = 0.05

    def refuse_second(*arguments: object) -> object:
        if server.loop.handles:
            raise ConnectionError("no more")
        return submit(*arguments)  # type: ignore[arg-type]

    server.loop.submit = refuse_second  # type: ignore[method-assign,assignment]
    with pytest.raises(openai.InternalServerError):
        server.sdk.completions.create(model="base", prompt=["a", "b"])
    assert server.loop.handles[0].cancelled.is_set()
