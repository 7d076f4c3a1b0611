"""Shows training jobs and downloads as progress bars, or as lines of text outside a terminal."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from clients.python import Event
from server.control_characters import visible_lines

_PLAIN_STEPS = 10  # lines per job outside a terminal


class TrainingBars:
    """One bar per job; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._printed_tenths: dict[str, int] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "TrainingBars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def add(self, name: str) -> None:
        """Show a job that is waiting."""
        self._tasks[name] = self._progress.add_task(name, total=None, figures="waiting")

    def show(self, name: str, event: Event) -> None:
        """Move the job's bar, or print the event's message."""
        if event.type == "metrics" and "total_steps" in event.data:
            self._move(name, event)
        elif event.level != "info" or not self._console.is_terminal:
            self._say(name, event.message)

    def finish(self, name: str, outcome: str) -> None:
        """The job has ended."""
        task = self._progress.tasks[self._tasks[name]]
        total = task.total or 1
        self._progress.update(task.id, total=total, completed=total, figures=outcome)
        if not self._console.is_terminal:
            self._say(name, outcome)

    def _move(self, name: str, event: Event) -> None:
        step, total = int(event.data["step"]), int(event.data["total_steps"])
        figures = _figures(event)
        self._progress.update(self._tasks[name], completed=step, total=total, figures=figures)
        tenth = step * _PLAIN_STEPS // max(total, 1)
        if not self._console.is_terminal and tenth > self._printed_tenths.get(name, -1):
            self._printed_tenths[name] = tenth
            self._say(name, f"step {step} of {total}, {figures}")

    def _say(self, name: str, message: str) -> None:
        # Outside a terminal, what somebody searches for is on one line.
        plain = not self._console.is_terminal
        self._console.print(Text(visible_lines(f"{name}: {message}")), soft_wrap=plain)


def _figures(event: Event) -> str:
    shown = []
    for key, label in (("train_loss", "loss"), ("valid_loss", "validation loss")):
        value = event.data.get(key)
        if isinstance(value, int | float):
            shown.append(f"{label} {value:.3f}")
    return ", ".join(shown)


class DownloadBar:
    """A bar for one download of `total` bytes; a context manager."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        self._console = console
        self._name, self._total, self._tenths = name, total, -1
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(f"fetching {name}", total=total)

    def __enter__(self) -> "DownloadBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: int) -> None:
        """So many bytes have come."""
        self._progress.update(self._task, completed=done)
        tenths = done * _PLAIN_STEPS // self._total
        if not self._console.is_terminal and tenths > self._tenths:
            self._tenths = tenths
            megabytes = f"{done / 1e6:.0f} of {self._total / 1e6:.0f} MB"
            self._console.print(Text(f"fetching {self._name}: {megabytes}"), soft_wrap=True)
