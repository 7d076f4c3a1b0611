"""A job's metrics as a curve that can be drawn, however many steps it has. Knows no plots."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from server.db.tables import EventRow

_MOST_SCORED: Final = 1000  # a run has about ten

Metrics = Mapping[str, Any]
"""`TrainingMetrics` as a document."""


@dataclass(frozen=True)
class Curve:
    """Metrics by step, the oldest first. `reported` is how many the job has, drawn or not."""

    points: tuple[Metrics, ...]
    reported: int


def read_curve(session: Session, job_id: str, most: int) -> Curve:
    """All metrics of a job; of more than `most`, a part that hides no peak.

    The steps are cut into spans of the same length. Each span gives the step with its lowest
    training loss and the one with its highest. Steps that were scored on the validation lines, and
    the last step, are always there.
    """
    mine = (EventRow.job == job_id) & (EventRow.type == "metrics")
    counted = select(func.count(), func.max(EventRow.number)).where(mine)
    reported, last = session.execute(counted).one()
    chosen = (
        mine if reported <= most else EventRow.number.in_(_extremes(mine, reported, most, last))
    )
    query = select(EventRow.data).where(chosen).order_by(EventRow.number)
    return Curve(tuple(session.scalars(query.limit(most + _MOST_SCORED))), reported)


def _extremes(mine: ColumnElement[bool], reported: int, most: int, last: int) -> Any:
    """The numbers of the events to keep."""
    span = -(-reported // max(most // 2, 1))
    place = func.row_number().over(order_by=EventRow.number) - 1
    steps = (
        select(
            EventRow.number,
            (place // span).label("span"),
            EventRow.data["train_loss"].as_float().label("loss"),
            EventRow.data["valid_loss"].as_float().label("score"),
        )
        .where(mine)
        .subquery()
    )
    column = steps.c
    loss, row = column.loss, func.row_number()
    ranked = select(
        column.number,
        column.score,
        row.over(partition_by=column.span, order_by=loss.asc().nulls_last()).label("low"),
        row.over(partition_by=column.span, order_by=loss.desc().nulls_last()).label("high"),
    ).subquery()
    it = ranked.c
    kept = (it.low == 1) | (it.high == 1) | it.score.is_not(None) | (it.number == last)
    return select(it.number).where(kept)


def newest_metrics(session: Session, job_ids: Iterable[str]) -> dict[str, Metrics]:
    """The last metrics of each of these jobs; those without any are left out."""
    found = {}
    for job_id in job_ids:
        mine = (EventRow.job == job_id) & (EventRow.type == "metrics")
        data = session.scalar(
            select(EventRow.data).where(mine).order_by(EventRow.number.desc()).limit(1)
        )
        if data is not None:
            found[job_id] = data
    return found
