"""A loop that hangs is told apart from one that works long, and from a machine that slept."""

import threading
import time

import pytest

from server.loop_progress import STEP_S, Progress, ProgressWatch, StepProgress, watch


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def looks(watching: ProgressWatch, clock: Clock, seconds: float, every_s: float = 0.5) -> str:
    """Look until so much time has passed; the first words."""
    words, end = "", clock.now + seconds
    while clock.now < end and not words:
        clock.now += every_s
        words = watching.overdue()
    return words


def test_what_takes_longer_than_it_said_is_named() -> None:
    progress, clock = Progress(), Clock()
    progress.begin("reading", 5)
    watching = ProgressWatch(progress, clock)
    assert looks(watching, clock, 5) == ""
    assert looks(watching, clock, 1) == "reading has taken over 5 s, which is too long"


def test_each_beginning_is_progress_even_of_the_same() -> None:
    progress, clock = Progress(), Clock()
    watching = ProgressWatch(progress, clock)
    for _ in range(10):
        progress.begin("reading", 5)
        assert looks(watching, clock, 4) == ""


def test_a_watch_that_was_stopped_itself_blames_nobody() -> None:
    progress, clock = Progress(), Clock()
    progress.begin("reading", 5)
    watching = ProgressWatch(progress, clock)
    assert looks(watching, clock, 3600, every_s=1200) == "", "the machine slept, in three naps"
    assert looks(watching, clock, 6) != ""


def test_a_loop_that_is_over_is_waited_for_no_more() -> None:
    progress, clock = Progress(), Clock()
    progress.end()
    assert looks(ProgressWatch(progress, clock), clock, 10_000) == ""


def test_after_a_long_part_what_was_done_before_begins_anew() -> None:
    progress = Progress()
    progress.begin("a job", 3)
    before = progress.now
    with progress.during("saving", 60, 120):
        assert progress.now == ("saving", 60, 120)
    assert progress.now == before and progress.now is not before


def test_the_first_step_has_time_to_compile_and_to_read_a_long_prompt() -> None:
    progress = StepProgress()
    assert progress.allowed(1) >= 60
    assert progress.allowed(2048) >= 2000


def test_steps_teach_how_long_one_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    progress = StepProgress()
    for tokens, seconds in ((1, 0.01), (512, 30.0)):
        progress.begin_step(tokens)
        clock.now += seconds
        progress.begin("between")
    assert progress.allowed(1) < STEP_S + 1, "a hang is noticed soon where steps are short"
    assert progress.allowed(512) >= 10 * 30, "a long prompt on a slow machine is no hang"
    assert progress.allowed(4096) >= 8 * 10 * 30
    progress.begin_step(512)
    assert progress.now.within_s == progress.allowed(512)


def test_the_beats_end_when_one_of_the_loops_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.loop_progress._LOOK_S", 0.02)
    good, bad = Progress(), Progress()
    bad.begin("a step", 0.1)
    beats: list[float] = []
    hung: list[str] = []
    ended = threading.Event()

    def on_hung(words: str) -> None:
        hung.append(words)
        ended.set()

    watch([good, bad], on_hung, beat=beats.append)
    assert ended.wait(10)
    count = len(beats)
    time.sleep(0.1)
    assert len(beats) == count > 0
    assert beats[0] == good.now.silent_s, "the longest silence that one of them allows"
    assert hung == ["a step has taken over 0 s, which is too long"]
