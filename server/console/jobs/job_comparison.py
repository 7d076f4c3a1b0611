"""Several jobs side by side: the options that differ, and what came of them. Knows no page."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.console.jobs.job_options import option_values, shown_value
from server.console.jobs.job_progress import JobProgress
from server.console.rendering import count, span

MOST = 8
_NONE = "–"  # noqa: RUF001


@dataclass(frozen=True)
class ComparedRow:
    """One property of all jobs, in their order."""

    name: str
    values: tuple[str, ...]


def differing_options(jobs: Sequence[JobProgress], files: Sequence[str]) -> Sequence[ComparedRow]:
    """What was asked of them that is not the same in all. `files` are the names of their files."""
    options = [
        {"Base or adapter": it.job.model, "Training file": file} | option_values(it.job)
        for it, file in zip(jobs, files, strict=True)
    ]
    names = dict.fromkeys(name for one in options for name in one)
    rows = [
        ComparedRow(name, tuple(shown_value(one.get(name, _NONE)) for one in options))
        for name in names
    ]
    return [row for row in rows if len(set(row.values)) > 1]


def final_figures(jobs: Sequence[JobProgress]) -> Sequence[ComparedRow]:
    """What came of them, as far as they are."""

    def row(name: str, *values: str) -> ComparedRow:
        return ComparedRow(name, values)

    found = [it.job.evaluation for it in jobs]
    return [
        row("Held-out loss of the base", *(_loss(it.base_loss if it else None) for it in found)),
        row(
            "Held-out loss of the adapter",
            *(_loss(it.adapter_loss if it else None) for it in found),
        ),
        row("Verdict", *((it and it.verdict) or _NONE for it in found)),
        row("Best step", *(str(it.step) if it and it.step else _NONE for it in found)),
        row("Steps", *(f"{it.step} of {it.steps}" if it.steps else _NONE for it in jobs)),
        row("Last training loss", *(_loss(it.loss) for it in jobs)),
        row("Trained tokens", *(count(it.job.trained_tokens or 0) for it in jobs)),
        row("Time", *(_NONE if it.elapsed is None else span(it.elapsed) for it in jobs)),
    ]


def _loss(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4f}"
