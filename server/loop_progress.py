"""What a loop does now and how long that may take, and a watch that tells when it hangs.

The loop's own thread says what it begins. So a thread that lives on while its loop hangs is no sign
of health. A watch counts only the time in which its own thread ran: a whole machine that was
stopped for a while has not made its loops hang. Knows no loop.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

STEP_S: Final = 20.0
"""Seconds that a small piece of work may take, and that a process at work may be silent."""
LOAD_S: Final = 7200.0
"""Seconds that loading a base model may take; it may come from the network."""
LONG_SILENCE_S: Final = 120.0
"""Seconds that a process may be silent while it loads or saves: a library may then keep Python's
other threads from running."""
_FIRST_S, _FIRST_TOKEN_S = 60.0, 1.0  # for a step before any was seen: it may compile kernels
_TIMES_SEEN: Final = 10  # a step may take so many times as long as those like it
_FADING: Final = 0.9  # of the slowest step, with each step that is quicker
_LOOK_S: Final = 0.5
_LONGEST_LOOK_S: Final = 1.0  # more time between two looks is the watch's own absence


class Activity(NamedTuple):
    """`within_s`: seconds that it may take. `silent_s`: that the process may then say nothing."""

    what: str
    within_s: float
    silent_s: float


class Progress:
    """What one loop does; written by its thread, read by any.

    Attributes:
        now: the last activity that was begun. Another object means that there was progress.
    """

    def __init__(self, what: str = "starting") -> None:
        self.now = Activity(what, LOAD_S, LONG_SILENCE_S)

    def begin(self, what: str, within_s: float = STEP_S, silent_s: float = STEP_S) -> None:
        """Say what comes next, and that all before is done."""
        self.now = Activity(what, within_s, silent_s)

    def end(self) -> None:
        """Say that the loop is over: nothing is expected of it any more."""
        self.begin("nothing", math.inf)

    @contextmanager
    def during(self, what: str, within_s: float, silent_s: float = STEP_S) -> Iterator[None]:
        """Within, do this; afterwards go on with what was done before, which begins anew."""
        before = self.now
        self.begin(what, within_s, silent_s)
        try:
            yield
        finally:
            self.begin(*before)


class StepProgress(Progress):
    """The progress of a loop that takes steps of tokens. Past ones say how long one may take."""

    def __init__(self, what: str = "starting") -> None:
        super().__init__(what)
        self._slowest: dict[int, float] = {}  # seconds, by the power of two above the tokens
        self._tokens, self._began = 0, 0.0  # of the step that is taken; 0: none is

    def begin(self, what: str, within_s: float = STEP_S, silent_s: float = STEP_S) -> None:
        super().begin(what, within_s, silent_s)
        if self._tokens:
            self._learn(self._tokens, time.monotonic() - self._began)
            self._tokens = 0

    def begin_step(self, tokens: int) -> None:
        """Say that a step, or the wait for its end, comes next."""
        self.begin(f"a step of {tokens} tokens", self.allowed(tokens))
        self._tokens, self._began = tokens, time.monotonic()

    def allowed(self, tokens: int) -> float:
        """Seconds for a step of so many tokens."""
        if not self._slowest:
            return _FIRST_S + _FIRST_TOKEN_S * tokens
        power = tokens.bit_length()
        # The nearest that was no larger; else the smallest of all.
        seen = max((one for one in self._slowest if one <= power), default=min(self._slowest))
        larger = 1 << max(power - seen, 0)
        return STEP_S + _TIMES_SEEN * larger * self._slowest[seen]

    def _learn(self, tokens: int, took: float) -> None:
        power = tokens.bit_length()
        self._slowest[power] = max(took, _FADING * self._slowest.get(power, 0.0))


class ProgressWatch:
    """One reader's judgement of a loop's progress; look at least every second."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._seen = progress.now
        self._spent_s = 0.0
        self._looked_at = clock()

    def overdue(self) -> str:
        """How the loop hangs, in words; empty while it does not."""
        now, activity = self._clock(), self._progress.now
        passed, self._looked_at = now - self._looked_at, now
        if activity is not self._seen:
            self._seen, self._spent_s = activity, 0.0
        else:
            self._spent_s += min(passed, _LONGEST_LOOK_S)
        if self._spent_s <= activity.within_s:
            return ""
        return f"{activity.what} has taken over {activity.within_s:.0f} s, which is too long"


def watch(
    loops: Sequence[Progress],
    on_hung: Callable[[str], None],
    *,
    beat: Callable[[float], None] = lambda _silent_s: None,
) -> None:
    """Start a thread that watches loops until one of them hangs.

    Args:
        on_hung: called once, with the words.
        beat: called twice a second until then, with the seconds that this process may be silent.
    """
    watches = [ProgressWatch(progress) for progress in loops]

    def run() -> None:
        while not (words := next(filter(None, [each.overdue() for each in watches]), "")):
            beat(max(progress.now.silent_s for progress in loops))
            time.sleep(_LOOK_S)
        on_hung(words)

    threading.Thread(target=run, name="progress", daemon=True).start()
