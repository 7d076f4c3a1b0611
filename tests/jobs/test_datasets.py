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


DUMPED: dict[str, object] = {  # as `model_dump()` of the SDK's messages gives them
    **{"refusal": None, "annotations": [], "audio": None, "function_call": None},
    **{
        "tool_calls": None,
        "reasoning_content": None,
        "provider_fields": {"refusal": None},
        "weight": None,
    },
}
NO_TEXT = {**DUMPED, **CALL, "content": ""}
OLD_CALL = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}
OLD_ANSWER = {"role": "function", "name": "f", "content": "sun"}


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ([SYSTEM, ANSWER], [SYSTEM, ANSWER]),
        ([USER, ANSWER, SYSTEM, ANSWER], [USER, ANSWER, SYSTEM, ANSWER]),
        ([SYSTEM, SYSTEM, USER, ANSWER], [SYSTEM, SYSTEM, USER, ANSWER]),
        ([USER, SYSTEM, ANSWER], [USER, SYSTEM, ANSWER]),
        ([USER, USER, ANSWER, ANSWER], [USER, USER, ANSWER, ANSWER]),
        ([ANSWER, USER, ANSWER], [{**ANSWER, "weight": 0}, USER, ANSWER]),
        ([{"role": "developer", "content": "Be brief."}, USER, ANSWER],
         [{"role": "system", "content": "Be brief."}, USER, ANSWER]),
        ([{**USER, "name": "Al"}, {**ANSWER, "name": "Bo"}],
         [{**USER, "name": "Al"}, {**ANSWER, "name": "Bo"}]),
        ([{**USER, **DUMPED}, {**ANSWER, **DUMPED}], [USER, ANSWER]),
        ([{**USER, "name": None}, {**ANSWER, "tool_calls": []}], [USER, ANSWER]),
        ([USER, {**ANSWER, "weight": 1.0}], [USER, {**ANSWER, "weight": 1}]),
        ([USER, {**ANSWER, "weight": 0.0}, USER, ANSWER],
         [USER, {**ANSWER, "weight": 0}, USER, ANSWER]),
        ([{**USER, "weight": 0}, ANSWER], [{**USER, "weight": 0}, ANSWER]),
        ([USER, {**ANSWER, "reasoning_content": "Hm."}],
         [USER, {**ANSWER, "reasoning_content": "Hm."}]),
        ([{**USER, "content": "a\u2028b\u0085c"}, ANSWER],
         [{**USER, "content": "a\u2028b\u0085c"}, ANSWER]),
    ],
)  # fmt: skip
def test_messages_as_clients_write_them(sent: list[object], read: list[object]) -> None:
    """In escapes or as they are, and with what SDKs write around them."""
    line: dict[str, object] = {"messages": sent, "tools": None, "parallel_tool_calls": None}
    for content in (json.dumps(line), json.dumps({**line, "tools": []}, ensure_ascii=False)):
        dataset = validate(io.BytesIO((content + "\n").encode() * 10))
        assert dataset.records[9] == (10, {"messages": read})


def test_a_call_may_have_an_empty_text_and_no_arguments() -> None:
    record = validate([chat(USER, NO_TEXT, SUN, ANSWER)] * 10).records[0][1]
    assert record == validate([chat(USER, CALL, SUN, ANSWER)] * 10).records[0][1]
    assert len(validate([chat(USER, call(""), SUN, ANSWER)] * 10)) == 10


def test_older_functions_become_tools() -> None:
    functions = [{"name": "f", "parameters": {"type": "object"}}]
    record = validate([chat(USER, OLD_CALL, OLD_ANSWER, ANSWER, functions=functions)] * 10)
    called = {"id": "call00001", "type": "function"}
    called["function"] = {"name": "f", "arguments": {}}  # type: ignore[assignment]
    assert record.records[0][1] == {
        "messages": [
            USER,
            {"role": "assistant", "tool_calls": [called]},
            {"role": "tool", "content": "sun", "name": "f", "tool_call_id": "call00001"},
            ANSWER,
        ],
        "tools": [{"type": "function", "function": functions[0]}],
    }


def test_fields_without_a_value_are_left_out_of_completions() -> None:
    record = {"prompt": "a", "completion": "b"}
    more: dict[str, object] = {"messages": None, "id": None, "metadata": {}, "tags": []}
    assert validate([json.dumps(record | more).encode()] * 10).records[0] == (1, record)


def test_all_unknown_fields_of_a_line_are_named_at_once() -> None:
    asked = call("{}")
    asked["tool_calls"][0]["extra"] = 1  # type: ignore[index]
    line = chat(
        *({**USER, "id": 7, "tool_call_id": "x"}, asked, {**SUN, "tool_calls": [1]}),
        *({**ANSWER, "refusal": "No.", "audio": {"id": "a"}},),
        source="web",
        split=False,
    )
    assert reason(line) == (
        "has unknown fields: 'source', 'split', 'messages[0].id', 'messages[0].tool_call_id', "
        "'messages[1].tool_calls[0].extra', 'messages[2].tool_calls', 'messages[3].refusal', "
        "'messages[3].audio'; leave out what cannot be trained on"
    )
    many = reason(chat(USER, ANSWER, **{f"field{n}": n for n in range(30)}))
    assert "'field19' and 10 more; leave" in many


def test_blank_lines_are_skipped_and_counted() -> None:
    lines = [b"\n", GOOD, b" \r\n", *[GOOD] * 9, b"\n", b"\t"]
    assert [number for number, _ in validate(lines).records] == [2, *range(4, 13)]
    assert [problem.line for problem in problems([*lines, b"x"])] == [15]
    with pytest.raises(InvalidDataset, match="line 21: blank, as are too many lines before it"):
        validate([b"\n"] * 21, max_examples=10)


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
        (chat(USER, ANSWER, tools={"a": 1}), "'tools' is not a list of 1 to 128"),
        (chat(USER, ANSWER, functions="x"), "'functions' is a JSON string"),
        (chat(USER, ANSWER, tools=TOOLS, functions=[{"name": "f"}]), "'tools' and 'functions'"),
        (chat(USER, ANSWER, functions=["x"]), r"tools\[0\]\.function has no name"),
        (chat(USER, ANSWER, tools=[{"type": "x"}]), r"tools\[0\] is not of type 'function'"),
        (chat(USER, ANSWER, tools=[{"function": {}}]), r"tools\[0\].function has no name"),
        (chat(USER, ANSWER, tools=[{"function": {"name": "\ud800"}}]), "tools holds half of"),
        (chat(USER, CALL, USER, ANSWER), r"messages\[2\] comes before the answer to tool call c1"),
        (chat(USER, CALL, {**SUN, "tool_call_id": "c2"}, ANSWER), "'c2' answers no call before it"),
        (chat(USER, call("{")), "arguments is not JSON"),
        (chat(USER, call('{"a": 1e999}')), "arguments holds the number 1e999"),
        (chat(USER, call("[1]")), "arguments is a JSON list, not an object"),
        (b'{"messages": {}}', "not a list"),
        (chat(), "not a list with something"),
        (chat("hello", ANSWER), r"messages\[0\] is a JSON string"),
        (chat(*[USER, ANSWER] * 300), "600 messages"),
        (chat({"role": "robot", "content": "x"}, ANSWER), r"\[0\]\.role is 'robot'; known are"),
        (chat({"content": "x"}, ANSWER), r"\[0\]\.role is missing"),
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
        (chat(ANSWER), "nothing to learn: .* or begins the chat"),
        (chat(TOOL, ANSWER), r"messages\[0\] is tool after the beginning; it must answer"),
        (chat(USER, {"role": "function", "content": "x"}, ANSWER), r"\[1\] is function after user"),
        (chat(USER, {**CALL, "function_call": {"name": "f"}}), "tool_calls and function_call"),
        (chat(USER, {**ANSWER, "tool_calls": "x"}), r"\[1\]\.tool_calls is a JSON string"),
        (chat(USER, {**ANSWER, "function_call": "auto"}), r"tool_calls\[0\]\.function has no name"),
        (chat(USER, {"role": "assistant", "content": None, "tool_calls": []}), "has no text"),
        (chat({**USER, "name": 3}, ANSWER), r"messages\[0\]\.name has no text: it is 3"),
        (chat(USER, {**ANSWER, "weight": 0.5}), r"messages\[1\]\.weight is 0.5"),
        (chat(USER, {**ANSWER, "weight": "1"}), r"messages\[1\]\.weight is '1'"),
        (chat({**USER, "weight": 7}, ANSWER), r"messages\[0\]\.weight is 7"),
        (b'{"messages": null}', "neither 'messages' nor"),
        (b'{"prompt": null, "completion": "b"}', "prompt has no text: it is missing"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice in one object: keep one"),
        (b'{"messages": [{"role": "user", "content": "", "content": "x"}]}', "'content' twice"),
        (chat(USER, call('{"city": "A", "city": "B"}')), "arguments has the key 'city' twice"),
        (b'{"prompt": "a", "completion": "b"}', "has 'prompt' where the lines before"),
        (b'{"prompt": "a"}', "completion has no text"),
        (b'{"prompt": "a", "completion": ""}', "completion is empty"),
        (b'{"prompt": "a", "completion": "b", "id": 1}', "has an unknown field: 'id'; leave out"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(line: bytes, expected: str) -> None:
    assert re.search(expected, reason(line))


def test_a_thousand_bad_lines_are_listed_and_all_are_counted() -> None:
    lines = iter([GOOD, b"nonsense"] * 5000)
    with pytest.raises(InvalidDataset, match=r"^5000 lines are invalid") as raised:
        validate(lines, param="validation_file")
    assert [problem.line for problem in raised.value.problems] == list(range(2, 2001, 2))
    assert raised.value.count == 5000
    assert list(lines) == []
    assert str(raised.value).endswith("and 4980 more")
    assert len(str(raised.value)) < 10_000
    assert raised.value.param == "validation_file"


def test_counting_has_an_end() -> None:
    lines = iter([b"nonsense"] * 5000)
    with pytest.raises(InvalidDataset) as raised:
        validate(lines, max_examples=3000)
    assert (raised.value.count, len(raised.value.problems)) == (3000, 1000)
    assert len(list(lines)) == 2000, "the rest was not read"
    most = datasets.MAX_EXAMPLES
    assert datasets.problem_summary(raised.value.problems, most).startswith(f"{most} or more")


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
    found = problems([line])
    assert [problem.line for problem in found] == [None if "0 examples" in found[0].reason else 1]


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
