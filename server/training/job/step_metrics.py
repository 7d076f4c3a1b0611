"""A run's figures step by step, as the CSV that the OpenAI API gives with a finished job.

Beside the checkpoints while the job runs, a line per step, so that whoever goes on from a
checkpoint goes on with its figures. Knows no tensors.
"""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

from server.jobs.queue.job import Figures

COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
_NAMES: Mapping[str, str] = {"train_accuracy": "train_mean_token_accuracy"}
_CUT = ".cut"


class StepMetrics:
    """The figures in the file `path`, whose folder is made if need be."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, figures: Figures) -> None:
        """Note a step; it survives the process, and once `sync` was called, the machine."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(
                _shown(figures.get(_NAMES.get(column, column))) for column in COLUMNS
            )

    def sync(self) -> None:
        """Wait until what was noted is on the disk."""
        if self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def cut(self, last_step: int) -> None:
        """Forget what comes after a step: the run goes on from there."""
        kept = [row for step, row in self._rows().items() if step <= last_step]
        aside = self._path.with_suffix(_CUT)
        aside.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(kept)
        aside.replace(self._path)

    def table(self) -> bytes:
        """The whole as CSV with a header, each step once, in order."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(row for _, row in sorted(self._rows().items()))
        return text.getvalue().encode()

    def clear(self) -> None:
        """Remove the file, and what a killed `cut` left."""
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(_CUT).unlink(missing_ok=True)

    def _rows(self) -> dict[int, list[str]]:
        """By step; a worker that was taken over may have noted some twice, or half of a line."""
        if not self._path.exists():
            return {}
        with self._path.open(newline="") as file:
            whole = (row for row in csv.reader(file) if len(row) == len(COLUMNS))
            return {int(row[0]): row for row in whole if row[0].isdecimal()}


def _shown(figure: float | int | str | None) -> str:
    if figure is None:
        return ""
    return f"{figure:.6g}" if isinstance(figure, float) else str(figure)
