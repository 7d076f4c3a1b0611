"""JSON and numbers from outside: read as `json.loads` reads them, or refused before the work."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_store import outside_values
from adapters_store.outside_values import BadJson, JsonBounds, read_json, shown, whole_number

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values, st.booleans())
def test_what_json_writes_is_read(value: object, ascii_only: bool) -> None:
    written = json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        written.decode()
    except UnicodeDecodeError:
        return
    assert read_json(written) == value


@given(st.binary(max_size=80))
def test_other_bytes_are_refused_or_read_as_json_reads_them(content: bytes) -> None:
    try:
        value = read_json(content)
    except BadJson as error:
        assert str(error).split()[0] in ("is", "has", "holds")
    else:
        assert value == json.loads(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"1e999", "holds the number 1e999"),
        (b"[-1E999]", "holds the number -1E999"),
        (b'{"a": 1' + b"0" * 400 + b"}", r"holds the number 10{19}\.\.\. \(401 characters\)"),
        (b"-" + b"9" * 4000, "4001 characters"),
        (b"9" * 100_000, "100000 characters"),
        (b"1" + b"0" * 400 + b".5", "403 characters"),
        (b"NaN", "holds NaN"),
        (b"[-Infinity]", "holds -Infinity"),
        (b'{"a": Infinity}', "holds Infinity"),
        (b"[" * 65 + b"]" * 65, "nested more than 64"),
        (b"[" * 100_000, "more than"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested more than 64"),
        (b"[[],[[],[[]," * 30 + b"[]" + b"]" * 60, "nested|not JSON"),
        (b"[" + b"1," * 160_000 + b"1]", "more than 160000 values"),
        (b"[" + b'"",' * 200_000 + b"1]", "more than 160000 values"),
        (b"[" + b"{}," * 33_000 + b"1]", "32000 lists, objects and keys"),
        (b'"\xff"', "not UTF-8 at byte 2"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"", "not JSON: Expecting value at character 1"),
        (b"[1,]", "not JSON"),
    ],
)
def test_what_is_refused_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(BadJson, match=reason) as raised:
        read_json(content)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "text",
    ["[" * 100, "{,:" * 9999, '\\"[{' * 50_000, "9" * 5000, "\\", "\\\\\\", "NaN", "1e999"],
)
def test_marks_inside_of_a_text_do_not_count(text: str) -> None:
    assert read_json(json.dumps({"a": text}).encode()) == {"a": text}


def test_as_much_as_is_read() -> None:
    assert len(read_json(b"[" + b"1," * 150_000 + b"1]")) == 150_001
    assert read_json(b"[" * 64 + b"]" * 64)
    assert read_json(b"9" * 308) == 10**308 - 1
    assert read_json(b"[0." + b"3" * 999 + b"]") == [1 / 3]
    assert read_json(b"1e-999") == 0


@pytest.mark.parametrize("item", ["1,", "1e5,", "[],", "{},", '"",', '{"a":1},', "[" * 9, "9" * 99])
def test_refusing_takes_no_time(item: str) -> None:
    content = b"[" + item.encode() * (8 * 2**20 // len(item)) + b"1]"
    start = time.process_time()
    with pytest.raises(BadJson):
        read_json(content)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("007", 7), ("9" * 18, 10**18 - 1), ("9" * 19, None), ("9" * 5000, None)]
    + [(text, None) for text in ("", "-1", "+1", "1e3", "1_0", " 1", "\u0663", "\u00b2", "0x1")],
)
def test_a_whole_number_is_digits(text: str, number: int | None) -> None:
    assert whole_number(text) == number


@given(values)
def test_a_quote_is_short(value: object) -> None:
    assert len(shown(value)) <= 120
    assert len(shown([value] * 1000)) <= 120
    assert outside_values.shown("x" * 10**6).startswith("'xxx")


def test_numbers_that_are_not_finite_may_be_left_to_who_knows_the_field() -> None:
    text = b'{"a": 1e999, "b": [-Infinity], "c": ' + b"9" * 5000 + b', "d": 7, "e": 1.5}'
    inf = float("inf")
    assert read_json(text, finite=False) == {"a": inf, "b": [-inf], "c": inf, "d": 7, "e": 1.5}


@pytest.mark.parametrize("text", [b"[[[[1]]]]", b"[[],[],[],[]]", b"[1,2,3,4,5,6,7,8]"])
def test_bounds_may_be_narrower(text: bytes) -> None:
    assert read_json(text) is not None
    with pytest.raises(BadJson, match=r"nested more than 3 deep|more than 7 values, or 4 lists"):
        read_json(text, bounds=JsonBounds(values=7, objects=4, depth=3))
