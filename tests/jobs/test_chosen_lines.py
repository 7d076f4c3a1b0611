"""Lines by number: judged as a check of the whole file judges them."""

import io
import json
import time

import pytest

from server.errors import InvalidDataset
from server.jobs.files.chosen_lines import LAST_LINE, lines_from, texts_of
from server.jobs.files.datasets import BOM, MAX_LINE_BYTES, MAX_PROBLEMS, lines_of, validate

COMPLETION = b'{"prompt": "a", "completion": "b"}\n'
CHAT = json.dumps(
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
).encode()
FILE = [
    BOM + COMPLETION,
    b"nonsense\r\n",
    b"  \n",
    CHAT + b"\n",
    COMPLETION,
    b'{"prompt": "a", "completion": ""}',
]


@pytest.mark.parametrize("first", range(1, 9))
def test_problems_are_those_of_the_check(first: int) -> None:
    with pytest.raises(InvalidDataset) as raised:
        validate(FILE)
    expected = {it.line: it.reason for it in raised.value.problems if (it.line or 0) >= first}
    found = list(lines_from(FILE, first))
    assert [it.number for it in found] == [number for number in (1, 2, 4, 5, 6) if number >= first]
    assert {it.number: it.problem for it in found if it.problem} == expected
    assert all((it.record is None) == bool(it.problem) for it in found)


def test_a_text_is_the_line_without_its_break() -> None:
    found = {it.number: it.text for it in lines_from(FILE, 1)}
    assert found[1] == COMPLETION.decode().rstrip()
    assert found[2] == "nonsense"
    assert next(lines_from([b"\xff\n"], 1)).text == "\ufffd"
    long = next(lines_from(lines_of(io.BytesIO(b"x" * (MAX_LINE_BYTES + 9))), 1))
    assert "longer than" in long.problem


def test_among_very_many_bad_lines_the_kind_is_not_looked_for() -> None:
    began = time.perf_counter()
    lines = [b"x\n"] * (MAX_PROBLEMS + 1) + [b"{}\n"] * 200_000 + [COMPLETION]
    (last,) = lines_from(lines, len(lines))
    assert last.record is not None
    assert time.perf_counter() - began < 5


def test_no_more_lines_are_read_than_a_check_reads() -> None:
    read = 0

    def endless() -> object:
        nonlocal read
        while True:
            read += 1
            yield b"\n"

    assert list(lines_from(endless(), LAST_LINE)) == []  # type: ignore[arg-type]
    assert read <= LAST_LINE + 1


def test_texts_of_some_lines_are_cut() -> None:
    assert texts_of(FILE, [2, 4, 9], 5) == {2: "nonse", 4: CHAT.decode()[:5]}
    assert texts_of(["日本語".encode()], [1], 2) == {1: "日本"}
    assert texts_of(FILE, [], 5) == {}
