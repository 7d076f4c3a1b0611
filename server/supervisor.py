"""Keeps a child process running: starts it, and replaces it when it ends or hangs.

Knows nothing of its work.
"""

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0  # a child that ran this long has started well: the pause is short again
_LOOK_S: Final = 0.2
_LONGEST_LOOK_S: Final = 1.0  # more time between two looks is this process's own absence
_START_SILENCE_S: Final = 120.0  # until the first beat: a cold start reads much from the disk
_QUIET: Final = 4  # a silence of this part of what is allowed is told


class Supervisor:
    """Runs `command` as a child process until stopped.

    The child's standard input is a socket. It closes when this process ends, however it ends: a
    child that reads it never outlives this process. Into it the child writes beats while it makes
    progress: bytes, each with the seconds that it may be silent from then on. A child that is
    silent for longer hangs, and is killed. Only time in which this process itself runs counts.

    Args:
        environment: the whole environment of the child.
        name: the child's name in the log.
        stop_timeout_s: how long the child may take to end after SIGTERM before it is killed.
        on_end: called with the process id of each ended child, and with how it ended in words,
            before the next one starts.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        name: str = "worker",
        stop_timeout_s: float = 10,
        on_end: Callable[[int, str], None] = lambda _pid, _how: None,
    ) -> None:
        self._name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._stop_timeout_s = stop_timeout_s
        self._on_end = on_end
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._line: socket.socket | None = None  # to the child
        self._silence_s, self._allowed_s = 0.0, _START_SILENCE_S
        self.restarts = 0

    @property
    def alive(self) -> bool:
        """True while the child runs and makes progress."""
        return not self.problem

    @property
    def problem(self) -> str:
        """What is wrong with the child, in words; empty if nothing is."""
        if self.pid is None:
            return f"the {self._name} has ended and is started again"
        if self._silence_s <= self._allowed_s / _QUIET:
            return ""
        return (
            f"the {self._name} has made no progress for {self._silence_s:.0f} s; it is killed and "
            f"started again after {self._allowed_s:.0f} s"
        )

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the child and watch it."""
        self._launch()
        self._thread.start()

    def stop(self) -> None:
        """End the child: by SIGTERM, then by SIGKILL. A second call does nothing."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            how = self._wait()
            if self._stopping.is_set():
                break
            self._report_end(how)
            if time.monotonic() - started > _STEADY_S:
                pause = _FIRST_PAUSE_S
            log.warning("the %s %s; it starts again in %g s", self._name, how, pause)
            if self._stopping.wait(pause):
                break
            pause = min(pause * 2, _LONGEST_PAUSE_S)
            self.restarts += 1
            try:
                self._launch()
            except OSError:
                log.exception("the %s could not be started", self._name)
        self._end()
        if self._line is not None:
            self._line.close()

    def _launch(self) -> None:
        if self._line is not None:
            self._line.close()
        self._line, theirs = socket.socketpair()
        self._line.setblocking(False)
        self._silence_s, self._allowed_s = 0.0, _START_SILENCE_S
        with theirs:
            # In its own session: Ctrl-C in a terminal would otherwise end it before `stop` does.
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=theirs.fileno(),
                start_new_session=True,
            )

    def _wait(self) -> str:
        """Wait for the child's end, or for `stop`. Kills a child that hangs. Returns how it ended,
        in words."""
        assert self._process is not None
        looked_at, how = time.monotonic(), ""
        while not self._stopping.is_set():
            try:
                code = self._process.wait(timeout=_LOOK_S)
                return how or f"ended with status {code}"
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                self._listen(min(now - looked_at, _LONGEST_LOOK_S))
                looked_at = now
            if not how and self._silence_s > self._allowed_s:
                how = f"hung: it made no progress for {self._silence_s:.0f} s, and was killed"
                log.error("the %s %d %s", self._name, self._process.pid, how)
                self._process.kill()
        return how

    def _listen(self, passed_s: float) -> None:
        """Take in the beats since the last look, which was `passed_s` ago."""
        assert self._line is not None
        try:
            beats = self._line.recv(4096)
        except OSError:  # none
            beats = b""
        if beats:
            self._silence_s, self._allowed_s = 0.0, float(beats[-1])
        else:
            self._silence_s += passed_s

    def _report_end(self, how: str) -> None:
        assert self._process is not None
        try:
            self._on_end(self._process.pid, how)
        except Exception:  # the next child must start all the same
            log.exception("the end of the %s %d was not handled", self._name, self._process.pid)

    def _end(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(timeout=self._stop_timeout_s)
        except subprocess.TimeoutExpired:
            log.warning(
                "the %s did not end within %g s; killing it", self._name, self._stop_timeout_s
            )
            process.kill()
            process.wait()
        self._report_end("was stopped")
