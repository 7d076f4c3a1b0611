"""Good lines pass as they are; every bad line is named with its reason."""

import io
import json
import re
import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidDataset, LineProblem
from server.jobs.files import datasets
from server.jobs.files.datasets import validate

USER = {"role": "user", "content": "How tall?"}
ANSWER = {"role": "assistant", "content": "Tall."}
SYSTEM = {"role": "system", "content": ""}
TOOL = {"role": "tool", "content": "42"}


def call(arguments: str) -> dict[str, object]:
    function = {"name": "weather", "arguments": arguments}
    asked = {"id": "c1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [asked]}


CALL = call('{"city": "Oslo"}')
SUN = {"role": "tool", "tool_call_id": "c1", "content": "sun"}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def chat(*messages: object, **more: object) -> bytes:
    return json.dumps({"messages": messages, **more}).encode() + b"\n"


GOOD = chat(USER, ANSWER)


def problems(lines: Iterable[bytes]) -> list[LineProblem]:
    with pytest.raises(InvalidDataset) as raised:
        validate(lines)
    return list(raised.value.problems)


def reason(line: bytes) -> str:
    """The only problem of a file whose 4th line is `line`."""
    found = problems([GOOD] * 3 + [line] + [GOOD] * 10)
    assert [problem.line for problem in found] == [4]
    return found[0].reason


def test_chats_pass() -> None:
    dataset = validate([chat(SYSTEM, USER, {**ANSWER, "weight": 0}, USER, ANSWER)] + [GOOD] * 9)
    assert (len(dataset), dataset.chat) == (10, True)
    messages = [SYSTEM, USER, {**ANSWER, "weight": 0}, USER, ANSWER]
    assert dataset.records[0] == (1, {"messages": messages})
    assert dataset.records[9] == (10, {"messages": [USER, ANSWER]})


def test_tools_may_answer() -> None:
    line = chat(USER, ANSWER, TOOL, TOOL, ANSWER)
    assert len(validate([line] * 10)) == 10


def test_tools_and_their_calls_are_read() -> None:
    line = chat(USER, CALL, SUN, ANSWER, tools=TOOLS, parallel_tool_calls=False)
    record = validate([line] * 10).records[0][1]
    read = {"id": "c1", "type": "function"}
    read["function"] = {"name": "weather", "arguments": {"city": "Oslo"}}  # type: ignore[assignment]
    called = {"role": "assistant", "tool_calls": [read]}
    assert record == {"messages": [USER, called, SUN, ANSWER], "tools": TOOLS}
    assert len(validate([chat(USER, CALL, tools=TOOLS)] * 10)) == 10


def test_completions_pass() -> None:
    record = {"prompt": "", "completion": " world"}
    dataset = validate([json.dumps(record).encode()] * 10)
    assert not dataset.chat
    assert dataset.records[0] == (1, record)


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    dataset = validate([chat({**USER, "content": parts}, ANSWER)] * 10)
    assert dataset.records[0][1] == {"messages": [{**USER, "content": "ab"}, ANSWER]}


def test_a_byte_order_mark_and_windows_line_ends_are_tolerated() -> None:
    file = io.BytesIO(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") * 10)
    dataset = validate(file)
    assert (len(dataset), dataset.marked) == (10, True)
    assert not validate([GOOD] * 10).marked


def test_a_last_line_without_its_end_counts() -> None:
    assert len(validate(io.BytesIO((GOOD * 10).rstrip()))) == 10


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"\n", "empty line"),
        (b"  \r\n", "empty line"),
        (b"{'messages': 1}\n", "is not JSON: .* at character 2"),
        (b'"\xe9"\n', "not UTF-8 at byte 2"),
        (b"\xef\xbb\xbf" + GOOD, "not JSON"),
        (b"[" * 100_000, "has more than .* lists"),
        (b"[" * 100 + b"]" * 100, "nested more than 64 deep"),
        (b'{"prompt": 1e999}', "holds the number 1e999"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", r"holds the number 9+\.\.\. \(5000 characters\)"),
        (b'{"prompt": NaN}', "holds NaN"),
        (b"[1]\n", "a JSON list where an object"),
        (b"3\n", "a JSON number where an object"),
        (b"{}\n", "neither 'messages' nor 'prompt'"),
        (b'"' + b"x" * datasets.MAX_LINE_BYTES + b'"', "longer than 1048576 bytes"),
        (chat(USER, ANSWER, tools=[]), "'tools' is not a list of 1 to 128"),
        (chat(USER, ANSWER, functions=[]), "the line has an unknown key 'functions'"),
        (chat(USER, ANSWER, tools=[{"type": "x"}]), r"tools\[0\] is not of type 'function'"),
        (chat(USER, ANSWER, tools=[{"function": {}}]), r"tools\[0\].function has no name"),
        (chat(USER, ANSWER, tools=[{"function": {"name": "\ud800"}}]), "tools holds half of"),
        (chat(USER, {**CALL, "tool_calls": []}), r"messages\[1\]\.tool_calls is not a list"),
        (chat(USER, CALL, USER, ANSWER), r"messages\[2\] comes before the answer to tool call c1"),
        (chat(USER, CALL, {**SUN, "tool_call_id": "c2"}, ANSWER), "'c2' answers no call before it"),
        (chat(USER, call("{")), "arguments is not JSON"),
        (chat(USER, call('{"a": 1e999}')), "arguments holds the number 1e999"),
        (chat(USER, call("[1]")), "arguments is a JSON list, not an object"),
        (chat(USER, {**CALL, "content": ""}), r"messages\[1\] is empty"),
        (b'{"messages": {}}', "not a list"),
        (chat(), "not a list with something"),
        (chat("hello", ANSWER), r"messages\[0\] is a JSON string"),
        (chat(*[USER, ANSWER] * 300), "600 messages"),
        (chat({"role": "robot", "content": "x"}, ANSWER), r"\[0\]\.role is 'robot'; known are"),
        (chat({"content": "x"}, ANSWER), r"\[0\]\.role is missing"),
        (chat({**USER, "name": "Al"}, ANSWER), r"messages\[0\] has an unknown key 'name'"),
        (chat({**USER, "weight": 1}, ANSWER), r"messages\[0\] has an unknown key 'weight'"),
        (chat({"role": "user"}, ANSWER), r"messages\[0\] has no text: it is missing"),
        (chat({**USER, "content": 3}, ANSWER), r"messages\[0\] has no text: it is 3"),
        (chat({**USER, "content": [{"type": "image_url"}]}, ANSWER), "not a text part"),
        (chat(USER, {**ANSWER, "content": " \n"}), r"messages\[1\] is empty"),
        (chat(USER, {**ANSWER, "content": "\ud800"}), "half of a surrogate pair"),
        (chat(USER, {**ANSWER, "weight": 2}), r"messages\[1\]\.weight is 2"),
        (chat(USER, {**ANSWER, "weight": True}), r"messages\[1\]\.weight is True"),
        (chat(USER, {**ANSWER, "weight": 0}), "nothing to learn"),
        (chat(USER, ANSWER, USER), "the last message is the user's"),
        (chat(SYSTEM), "the last message is the system's"),
        (chat(USER, USER, ANSWER), r"messages\[1\] is user after user; expected assistant"),
        (chat(ANSWER), r"messages\[0\] is assistant at the start; expected system or user"),
        (chat(USER, ANSWER, SYSTEM, USER, ANSWER), r"messages\[2\] is system after assistant"),
        (b'{"prompt": "a", "completion": "b"}', "has 'prompt' where the lines before"),
        (b'{"prompt": "a"}', "completion has no text"),
        (b'{"prompt": "a", "completion": ""}', "completion is empty"),
        (b'{"prompt": "a", "completion": "b", "id": 1}', "unknown key 'id'"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(line: bytes, expected: str) -> None:
    assert re.search(expected, reason(line))


def test_a_thousand_bad_lines_are_listed_and_the_message_stays_short() -> None:
    lines = iter([GOOD, b"nonsense"] * 5000)
    with pytest.raises(InvalidDataset, match=r"^1000 or more lines are invalid") as raised:
        validate(lines, param="validation_file")
    assert [problem.line for problem in raised.value.problems] == list(range(2, 2001, 2))
    assert len(list(lines)) == 8000, "the rest was not read"
    assert str(raised.value).endswith("and 980 more")
    assert len(str(raised.value)) < 10_000
    assert raised.value.param == "validation_file"


@pytest.mark.parametrize("count", [0, 9])
def test_too_few_examples_are_refused(count: int) -> None:
    with pytest.raises(InvalidDataset, match=f"has {count} examples; at least 10"):
        validate([GOOD] * count)
    assert len(validate([GOOD] * 9, min_examples=1)) == 9


def test_too_many_examples_are_refused() -> None:
    with pytest.raises(InvalidDataset, match="line 11: more than 10 examples; split") as raised:
        validate([GOOD] * 12, max_examples=10)
    assert len(raised.value.problems) == 1


def test_a_line_that_is_too_long_is_not_read_whole() -> None:
    most = datasets.MAX_LINE_BYTES
    file = io.BytesIO(GOOD + b"x" * (3 * most) + b"\n" + GOOD + b"y" * most)
    assert [len(line) for line in datasets.lines_of(file)] == [
        len(GOOD),
        most + 1,
        len(GOOD),
        most,
    ]


@given(st.binary(max_size=60))
def test_no_bytes_break_the_check(line: bytes) -> None:
    assert [problem.line for problem in problems([line])] == [1]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "prompt", "completion", "weight"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_no_json_breaks_the_check(value: object) -> None:
    line = json.dumps(value).encode()
    try:
        dataset = validate([line] * 10)
    except InvalidDataset as error:
        assert [problem.line for problem in error.problems] == list(range(1, 11))
    else:
        assert len(dataset) == 10


def test_fifty_thousand_lines_take_seconds() -> None:
    start = time.process_time()
    assert len(validate([GOOD] * 50_000)) == 50_000
    assert time.process_time() - start < 10
