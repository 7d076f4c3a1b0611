"""Options check themselves, and survive the database."""

import json

import pytest

from server.errors import InvalidRequest
from server.jobs.options import TrainOptions


@pytest.mark.parametrize(
    "options",
    [
        TrainOptions(),
        TrainOptions(rank=8, targets="attention", learning_rate=1, seed=2**63 - 1),
        TrainOptions(targets=("q_proj", "mlp.up_proj"), schedule="linear", dropout=0.5),
    ],
)
def test_options_read_back(options: TrainOptions) -> None:
    assert TrainOptions.from_json(options.to_json()) == options


def test_auto_and_null_leave_the_choice_to_the_trainer() -> None:
    text = '{"n_epochs": "auto", "batch_size": null, "rank": 16, "targets": ["q_proj"]}'
    options = TrainOptions.from_json(text)
    assert options == TrainOptions(rank=16, targets=("q_proj",))
    assert json.loads(options.to_json()) == {
        "method": "vera",
        "rank": 16,
        "targets": ["q_proj"],
    }


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("method", "lora"),
        ("rank", 0),
        ("rank", 1025),
        ("rank", 8.0),
        ("rank", True),
        ("targets", "everything"),
        ("targets", []),
        ("targets", ["../q"]),
        ("targets", [3]),
        ("learning_rate", 0),
        ("learning_rate", "fast"),
        ("learning_rate", float("nan")),
        ("learning_rate_multiplier", -1),
        ("n_epochs", 0),
        ("batch_size", 5000),
        ("warmup_ratio", 1.5),
        ("schedule", "random"),
        ("max_grad_norm", 0),
        ("weight_decay", -0.1),
        ("d_initial", float("inf")),
        ("dropout", 1.0),
        ("seed", -1),
        ("seed", 2**63),
        ("validation_split", 0.9),
        ("max_tokens_per_batch", 0),
        ("no_such_option", 1),
    ],
)
def test_a_bad_value_is_named(param: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=param) as raised:
        TrainOptions.from_json(json.dumps({param: value}))
    assert raised.value.param == param


@pytest.mark.parametrize("text", ["", "[]", "3", "[" * 100_000])
def test_only_an_object_is_read(text: str) -> None:
    with pytest.raises(InvalidRequest, match="JSON") as raised:
        TrainOptions.from_json(text)
    assert raised.value.param == "hyperparameters"


def test_two_learning_rates_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest, match="exclude each other"):
        TrainOptions(learning_rate=0.01, learning_rate_multiplier=2)
