"""The frame finds planted faults, makes them small, and can show them again."""

import json
import shlex
from random import Random
from typing import Any

import pytest

from tests.fuzz.edits import edit, edited, plain, written
from tests.fuzz.stop_texts import Wanted, reference
from tests.fuzz.target import wrong_error
from tests.fuzz.trial import Case, Report, Verdict, case_of, hunt, kind_of


class Planted:
    """A "server" that fails at a list in which a number is over 90."""

    name = "planted"

    def __init__(self, *, faults_left: int = 10**9, noisy: bool = False) -> None:
        self.judged = 0
        self._faults_left = faults_left
        self._noisy = noisy

    def make(self, chance: Random) -> Case:
        return {"kind": "list", "edits": [{"put": chance.randrange(100)} for _ in range(6)]}

    def judge(self, case: Case) -> Verdict:
        self.judged += 1
        high = [edit["put"] for edit in case["edits"] if edit["put"] > 90]
        if high and self._faults_left > 0:
            self._faults_left -= 1
            return Verdict("500", f"{high[0]} is too high\n{case}", self._noisy)
        return Verdict("200")


def found(fuzzer: Planted, cases: int = 20) -> Report:
    return hunt(fuzzer, 3, lambda number: number < cases)


def test_a_fault_is_found_made_small_and_told_once() -> None:
    report = found(Planted())
    (fault,) = report.faults.values()
    assert len(fault.case["edits"]) == 1 and fault.case["edits"][0]["put"] > 90
    assert fault.times == report.outcomes["500"] > 1
    assert report.cases == 20 == report.outcomes.total()


def test_it_can_be_shown_again() -> None:
    report = found(Planted())
    (fault,) = report.faults.values()
    _, only, replay = report.story.splitlines()[-3:]
    assert only.endswith(f"tests.fuzz planted --seed 3 --only {fault.number}")
    case = json.loads(shlex.split(replay)[-1])
    assert Planted().judge(case).wrong is not None
    assert Planted().judge(case_of(Planted(), 3, fault.number)).wrong is not None


@pytest.mark.parametrize(("noisy", "faults"), [(True, 0), (False, 1)])
def test_what_does_not_repeat_counts_unless_the_machine_may_cause_it(
    noisy: bool, faults: int
) -> None:
    report = found(Planted(faults_left=1, noisy=noisy))
    assert [fault.repeats for fault in report.faults.values()] == [False] * faults


def test_the_same_seed_makes_the_same_cases() -> None:
    numbers = range(30)
    first, again = ([case_of(Planted(), 5, number) for number in numbers] for _ in range(2))
    assert first == again != [case_of(Planted(), 6, number) for number in numbers]


def test_faults_of_one_kind() -> None:
    assert kind_of("it took 3.5 s\n{1}") == kind_of("it took 12 s\n{2}")
    assert kind_of("no such 'a'") != kind_of("no other 'a'")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"op": "put", "at": ["a", 0], "put": {"$raw": "1e309"}}, '{"a": [1e309, 2], "b": "c"}'),
        ({"op": "drop", "at": ["a"]}, '{"b": "c"}'),
        ({"op": "twice", "at": ["b"], "put": None}, '{"a": [1, 2], "b": "c", "b": null}'),
        ({"op": "wrap", "at": ["a", 1], "put": "text"}, '{"a": [1, "2"], "b": "c"}'),
        ({"op": "copies", "at": ["a", 1], "put": 2}, '{"a": [1, 2, 2, 2], "b": "c"}'),
        (
            {"op": "put", "at": ["b"], "put": {"$nest": "[", "$times": 3}},
            '{"a": [1, 2], "b": [[[0]]]}',
        ),
        ({"op": "put", "at": ["b"], "put": {"$text": "\ud800", "$times": 2}}, None),
        ({"op": "put", "at": ["gone", "x"], "put": 1}, '{"a": [1, 2], "b": "c"}'),
    ],
)
def test_an_edit_is_what_it_says(change: dict[str, Any], text: str | None) -> None:
    document = {"a": [1, 2], "b": "c"}
    text = text or '{"a": [1, 2], "b": "\\ud800\\ud800"}'
    assert written(edited(document, json.loads(json.dumps([change])))) == text
    assert document == {"a": [1, 2], "b": "c"}


def test_any_edit_can_be_written() -> None:
    document = {"a": {"b": [1, {"c": "d"}]}, "e": None}
    for seed in range(100):
        chance = Random(seed)
        changes = [edit(chance, document) for _ in range(3)]
        assert isinstance(written(edited(document, changes)), str)
        assert isinstance(plain(changes[0].get("put")), str)


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (b'{"error": {"message": "no", "type": "t", "param": null, "code": "c"}}', None),
        (b'{"error": {"message": "no", "type": "t", "param": 1, "code": "c"}}', "param is 1"),
        (b'{"error": {"message": "", "type": "t", "param": null, "code": "c"}}', "empty field"),
        (b'{"detail": "no"}', "not in the OpenAI API's form"),
        (b"Invalid", "not in the OpenAI API's form"),
        (b"x" * 10**6, "1000000 bytes"),
    ],
)
def test_the_form_of_an_error(body: bytes, wrong: str | None) -> None:
    told = wrong_error(400, body)
    assert told is None if wrong is None else wrong in str(told)


@pytest.mark.parametrize(
    ("pieces", "stops", "wanted"),
    [
        ([b"ab", b"cd", b"ef"], ["cde"], ("ab", "cde")),
        ([b"abcd"], ["d", "bc"], ("a", "bc")),
        ([b"a", b"</s>", b"b"], ["</s>"], ("a", "</s>")),
        ([b"a", b"<s>", b"b"], ["x"], ("ab", None)),
        ([b"\xc3", b"\xa9x"], ["\ufffd"], ("éx", None)),
        ([b"a\xc3"], ["\ufffd"], ("a", "\ufffd")),
    ],
)
def test_the_reference_of_stop_strings(
    pieces: list[bytes], stops: list[str], wanted: tuple[str, str | None]
) -> None:
    assert reference(pieces, stops) == Wanted(*wanted)
