"""Held-back text: stop strings never show, and nothing else is lost."""

from hypothesis import given
from hypothesis import strategies as st

from server.scheduler.stop_strings import AnswerText


class Pieces:
    """Token i reads as the i-th piece."""

    def __init__(self, pieces: list[str], tail: str = "") -> None:
        self.pieces = pieces
        self.tail = tail

    def push(self, token_id: int) -> str:
        return self.pieces[token_id]

    def unshown(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return self.tail


def run(pieces: list[str], stops: list[str], tail: str = "") -> tuple[str, str | None]:
    text = AnswerText(Pieces(pieces, tail), stops)
    out = ""
    for index in range(len(pieces)):
        shown = text.show(text.decode(index))
        out += shown.text
        if shown.stop is not None:
            return out, shown.stop
    last = text.finish()
    return out + last.text, last.stop


def reference(whole: str, stops: list[str]) -> tuple[str, str | None]:
    """Cut the text at the first stop string to be complete, reading character by character."""
    for end in range(len(whole) + 1):
        hits = [(end - len(stop), stop) for stop in stops if whole[:end].endswith(stop)]
        if hits:
            at, stop = min(hits)
            return whole[:at], stop
    return whole, None


def test_a_stop_string_across_tokens_is_cut_whole() -> None:
    assert run(["Hello w", "or", "ld, bye"], ["world"]) == ("Hello ", "world")


def test_a_false_start_is_released() -> None:
    assert run(["ab", "c", "x"], ["abcd"]) == ("abcx", None)


def test_what_is_held_at_the_end_is_shown() -> None:
    assert run(["ab", "c"], ["abcd"], tail="!") == ("abc!", None)


def test_nothing_that_may_become_a_stop_is_shown_early() -> None:
    text = AnswerText(Pieces(["a", "b", "c"]), ["abcd"])
    assert [text.show(text.decode(index)).text for index in range(3)] == ["", "", ""]


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
)
def test_single_characters_stop_where_the_reference_does(
    pieces: list[str], stops: list[str]
) -> None:
    letters = list("".join(pieces))
    assert run(letters, stops) == reference("".join(pieces), stops)


@given(st.lists(st.text("abc", max_size=4), max_size=8), st.text("ab", min_size=1, max_size=3))
def test_one_stop_cuts_the_same_however_text_is_split(pieces: list[str], stop: str) -> None:
    assert run(pieces, [stop]) == reference("".join(pieces), [stop])
