"""A run's metrics, to the JSON of the database and back."""

import json
import math

from server.jobs.queue.training_metrics import TrainingMetrics


def test_what_was_not_measured_is_left_out_and_what_is_not_finite_is_null() -> None:
    metrics = TrainingMetrics(3, train_loss=math.inf, valid_loss=1.5)
    document = json.loads(json.dumps(metrics.to_document(), allow_nan=False))
    assert document == {"step": 3, "train_loss": None, "valid_loss": 1.5}
    again = TrainingMetrics.from_document(document)
    assert again.train_loss is not None and math.isnan(again.train_loss)
    assert (again.step, again.valid_loss, again.best_step) == (3, 1.5, None)
    assert again.to_document() == document


def test_rows_of_other_versions_can_be_read() -> None:
    assert TrainingMetrics.from_document({"step": 2, "of_another_version": 1}) == TrainingMetrics(2)


def test_a_loss_that_was_not_measured_compares_with_nothing() -> None:
    loss = TrainingMetrics(1).valid_loss_or_nan
    assert not loss < 1.0 and not loss > 1.0
