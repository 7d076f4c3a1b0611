"""Keeps a child process running: starts, restarts and stops it. Knows nothing of its work."""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0  # a child that ran this long has started well: the pause is short again


class Supervisor:
    """Runs `command` as a child process until stopped.

    The child's standard input is a pipe that closes when this process ends, however it ends. So a
    child that watches it never outlives this process.

    Args:
        environment: the whole environment of the child.
        name: the child's name in the log.
        stop_timeout_s: how long the child may take to end after SIGTERM before it is killed.
        on_end: called with the process id of each ended child before the next one starts.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        name: str = "worker",
        stop_timeout_s: float = 10,
        on_end: Callable[[int], None] = lambda _pid: None,
    ) -> None:
        self._name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._stop_timeout_s = stop_timeout_s
        self._on_end = on_end
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._lifeline = os.pipe()
        self.restarts = 0

    @property
    def alive(self) -> bool:
        """True while the child runs."""
        process = self._process
        return process is not None and process.poll() is None

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
            code = self._wait()
            if self._stopping.is_set():
                break
            self._report_end()
            if time.monotonic() - started > _STEADY_S:
                pause = _FIRST_PAUSE_S
            log.warning(
                "the %s ended with status %s; it starts again in %g s", self._name, code, pause
            )
            if self._stopping.wait(pause):
                break
            pause = min(pause * 2, _LONGEST_PAUSE_S)
            self.restarts += 1
            try:
                self._launch()
            except OSError:
                log.exception("the %s could not be started", self._name)
        self._end()
        for descriptor in self._lifeline:
            os.close(descriptor)

    def _launch(self) -> None:
        # In its own session: Ctrl-C in a terminal would otherwise end it before `stop` does.
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=self._lifeline[0],
            start_new_session=True,
        )

    def _wait(self) -> int | None:
        """Wait for the child's end, or for `stop`. Returns the child's status, if it ended."""
        assert self._process is not None
        while not self._stopping.is_set():
            try:
                return self._process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
        return None

    def _report_end(self) -> None:
        assert self._process is not None
        try:
            self._on_end(self._process.pid)
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
        self._report_end()
