"""A bar while decode steps are captured at the start of an engine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


@contextmanager
def capturing() -> Iterator[Callable[[int, int], None]]:
    """Gives a function to be told how many of how many are captured."""
    columns = TextColumn("verandah: {task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("capturing decode steps", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
