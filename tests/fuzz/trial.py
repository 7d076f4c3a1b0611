"""The frame of all fuzzers: make cases from a seed, judge them, shrink what fails, and tell of it.

A case is JSON. So it can be printed, and judged again by `--replay`.
"""

import json
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple, Protocol

Case = dict[str, Any]

_SHRINK_TRIES = 80
_SHRINK_S = 60.0
_MOST_FAULTS = 20  # distinct ones; a server that fails at everything is not worth more time


class Verdict(NamedTuple):
    """How a case went, for the table, and what was wrong with that.

    `noisy` says that a busy machine may cause the same. Such a fault counts if it repeats.
    """

    outcome: str
    wrong: str | None = None
    noisy: bool = False


class Fuzzer(Protocol):
    """One area. A case depends on the given randomness alone."""

    name: str

    def make(self, chance: Random) -> Case: ...

    def judge(self, case: Case) -> Verdict: ...


@dataclass
class Fault:
    """Something wrong, with the first case that showed it, made small."""

    number: int
    wrong: str
    case: Case
    repeats: bool
    times: int = 1


@dataclass
class Report:
    """What a run over one area found."""

    area: str
    seed: int
    small: bool = False
    cases: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: dict[str, Fault] = field(default_factory=dict)

    @property
    def row(self) -> str:
        """A line of the table that `HEAD` begins."""
        ends = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common(7))
        return f"| {self.area} | {self.cases} | {self.seconds:.0f} | {len(self.faults)} | {ends} |"

    @property
    def story(self) -> str:
        """Each fault, with the commands that show it again."""
        lines = []
        for fault in self.faults.values():
            once = "" if fault.repeats else ", which did not repeat"
            command = f"  python -m tests.fuzz {self.area}"
            lines += [
                f"{self.area}: {fault.wrong}{once} ({fault.times} times)",
                f"{command} --seed {self.seed} --only {fault.number}{' --small' * self.small}",
                f"{command} --replay {shlex.quote(json.dumps(fault.case))}",
            ]
        return "\n".join(lines)


HEAD = "| area | cases | seconds | faults | outcomes |\n|---|---|---|---|---|"


def case_of(fuzzer: Fuzzer, seed: int, number: int) -> Case:
    """The case with that number: the same each time."""
    return fuzzer.make(Random(f"{fuzzer.name}/{seed}/{number}"))


def hunt(
    fuzzer: Fuzzer,
    seed: int,
    more: Callable[[int], bool],
    *,
    tell: Callable[[str], None] = lambda _: None,
    small: bool = False,
) -> Report:
    """Judge cases as long as `more(number)`; number counts from 0. `small` is for the report."""
    report = Report(fuzzer.name, seed, small)
    began = time.monotonic()
    number = 0
    while more(number) and len(report.faults) < _MOST_FAULTS:
        case = case_of(fuzzer, seed, number)
        verdict = fuzzer.judge(case)
        if verdict.wrong is not None:
            known = report.faults.get(kind_of(verdict.wrong))
            if known is not None:
                known.times += 1
            elif fault := _fault(fuzzer, number, case, verdict):
                report.faults[kind_of(verdict.wrong)] = fault
                tell(f"case {number}: {fault.wrong}")
        report.outcomes[verdict.outcome] += 1
        number += 1
        report.cases = number
        report.seconds = time.monotonic() - began
    return report


def kind_of(wrong: str) -> str:
    """Faults are of one kind if their first lines differ in numbers and quoted values alone."""
    wrong = wrong.partition("\n")[0]
    return re.sub(r"""'[^']*'|"[^"]*"|0x[0-9a-f]+|[\d.]+""", "#", wrong)[:120]


def _fault(fuzzer: Fuzzer, number: int, case: Case, verdict: Verdict) -> Fault | None:
    assert verdict.wrong is not None
    again = fuzzer.judge(case)
    if again.wrong is None:
        return None if verdict.noisy else Fault(number, verdict.wrong, case, repeats=False)
    kind = kind_of(again.wrong)
    small, wrong, end = case, again.wrong, time.monotonic() + _SHRINK_S
    tries = 0
    progress = True
    while progress:
        progress = False
        for candidate in smaller(small):
            if tries >= _SHRINK_TRIES or time.monotonic() > end:
                break
            tries += 1
            found = fuzzer.judge(candidate).wrong
            if found is not None and kind_of(found) == kind:
                small, wrong, progress = candidate, found, True
                break
    return Fault(number, wrong, small, repeats=True)


def smaller(case: Case) -> Iterator[Case]:
    """Simpler cases than this: without an item of a list, with fewer repetitions, or less text.

    Its lists say what is changed; the rest says what of, and stays.
    """
    for key, value in case.items():
        if isinstance(value, list):
            yield from ({**case, key: simpler} for simpler in _simpler(value))


def _simpler(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        if len(value) > 3:
            yield value[: len(value) // 2]
            yield value[len(value) // 2 :]
        for index in range(len(value)):
            yield value[:index] + value[index + 1 :]
        for index, item in enumerate(value):
            for simpler in _simpler(item):
                yield [*value[:index], simpler, *value[index + 1 :]]
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "$times" and item > 1:
                yield from ({**value, key: fewer} for fewer in {item // 10, item // 2, item - 1})
            elif key not in ("at", "op", "kind") and value.get("op") != "wrap":
                for simpler in _simpler(item):
                    yield {**value, key: simpler}
    elif isinstance(value, str) and len(value) > 1:
        yield value[: len(value) // 2]
        yield value[len(value) // 2 :]
