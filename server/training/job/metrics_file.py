"""A run's metrics step by step, as the CSV that the OpenAI API gives with a finished job.

The file lies with the job's checkpoints. A run that resumes from a checkpoint appends to it. Knows
no tensors.
"""

import csv
import io
import os
from pathlib import Path

from server.jobs.queue.training_metrics import CHECKPOINT_FIELDS, TrainingMetrics

COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
_CUT = ".cut"


class MetricsFile:
    """The CSV file at `path`; its folder is made if need be."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, metrics: TrainingMetrics) -> None:
        """Append a step. It survives the process, and after `sync` the machine."""
        row = (getattr(metrics, name) for name in CHECKPOINT_FIELDS)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(map(_cell, row))

    def sync(self) -> None:
        """Wait until all steps are on the disk."""
        if self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def cut(self, last_step: int) -> None:
        """Remove the steps after `last_step`: the run repeats them."""
        rows = [row for step, row in self._rows().items() if step <= last_step]
        copy = self._path.with_suffix(_CUT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with copy.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        copy.replace(self._path)

    def has_steps(self) -> bool:
        """Whether a step after step 0, which comes before training, is in it."""
        return any(self._rows())

    def table(self) -> bytes:
        """The whole as CSV with a header: each step once, in order."""
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
        """By step. A worker that lost its lease may have written a step twice, or half of one."""
        if not self._path.exists():
            return {}
        with self._path.open(newline="") as file:
            whole = (row for row in csv.reader(file) if len(row) == len(COLUMNS))
            return {int(row[0]): row for row in whole if row[0].isdecimal()}


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
