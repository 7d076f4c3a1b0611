"""Options check themselves, and survive the database."""

import json

import pytest

from server.adapters.methods.registry import method_specs
from server.errors import InvalidRequest
from server.jobs.queue.train_options import TrainOptions, check_method


def read(options: dict[str, object]) -> TrainOptions:
    """As the API reads them."""
    checked = TrainOptions.from_json(json.dumps(options))
    check_method(checked, method_specs())
    return checked


@pytest.mark.parametrize(
    "options",
    [
        TrainOptions(),
        TrainOptions(rank=8, targets="attention", learning_rate=1, seed=2**63 - 1),
        TrainOptions(targets=("q_proj", "mlp.up_proj"), schedule="linear", dropout=0.5),
        TrainOptions(publish="always"),
        TrainOptions(method="vera", trained="b", basis="per-layer", d_initial=1),
        TrainOptions(method="randlora", sparsity="sqrt"),
        TrainOptions(method="randlora", sparsity=6),
        TrainOptions(method="asymmetric-lora", trained="A", alpha=32),
        TrainOptions(method="lora", alpha=0.5),
    ],
)
def test_options_read_back(options: TrainOptions) -> None:
    assert read(json.loads(options.to_json())) == options


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
        ("method", "dora"),
        ("method", ["vera"]),
        ("trained", "everything"),
        ("trained", "B"),
        ("trained", ["d"]),
        ("basis", "own"),
        ("basis", True),
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
        ("publish", "never"),
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
        read({param: value})
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("method", "param", "value", "remedy"),
    [
        ("randlora", "trained", "d", "only of vera and asymmetric-lora"),
        ("lora", "trained", "B", "only of vera and asymmetric-lora"),
        ("vera", "trained", "A", "one of d+b, d, b"),
        ("asymmetric-lora", "trained", "b", "one of B, A"),
        ("lora", "basis", "shared", "only of vera"),
        ("randlora", "d_initial", 0.1, "only of vera"),
        ("vera", "sparsity", 3, "only of randlora"),
        ("randlora", "sparsity", 1, "between 1.01 and 128, nor one of dense, sqrt"),
        ("randlora", "sparsity", "thin", "between 1.01 and 128, nor one of dense, sqrt"),
        ("randlora", "sparsity", True, "between 1.01 and 128, nor one of dense, sqrt"),
        ("randlora", "sparsity", [3], "between 1.01 and 128, nor one of dense, sqrt"),
        ("vera", "alpha", 16, "only of asymmetric-lora and lora"),
        ("lora", "alpha", 0, "between 0.001 and 1e+06"),
    ],
)
def test_what_a_method_lacks_is_refused_with_the_remedy(
    method: str, param: str, value: object, remedy: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read({"method": method, param: value})
    assert raised.value.param == param
    assert remedy in str(raised.value)
    if "only of" in remedy:
        assert repr(method) in str(raised.value)


def test_where_d_alone_learns_it_begins_at_zero() -> None:
    with pytest.raises(InvalidRequest, match="leave it out") as raised:
        read({"trained": "d", "d_initial": 0.1})
    assert raised.value.param == "d_initial"
    assert read({"trained": "b", "d_initial": 0.1}).d_initial == 0.1


def test_an_option_at_which_nothing_learns_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"d_initial=0 .* never learn") as raised:
        read({"d_initial": 0})
    assert raised.value.param == "d_initial"


def test_a_job_written_before_there_were_other_methods_still_reads() -> None:
    stored = '{"d_initial": 0.0, "method": "vera", "n_epochs": 3, "targets": ["q_proj"]}'
    assert TrainOptions.from_json(stored) == TrainOptions(
        n_epochs=3, targets=("q_proj",), d_initial=0.0
    )


@pytest.mark.parametrize("text", ["", "[]", "3", "[" * 100_000])
def test_only_an_object_is_read(text: str) -> None:
    with pytest.raises(InvalidRequest, match="JSON") as raised:
        TrainOptions.from_json(text)
    assert raised.value.param == "hyperparameters"


def test_two_learning_rates_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest, match="exclude each other"):
        TrainOptions(learning_rate=0.01, learning_rate_multiplier=2)
