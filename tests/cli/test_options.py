"""Every setting is an option and a variable; a bad one is one line."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from server.cli.arguments.options import add_fields, add_settings, read_fields
from server.cli.chat import ChatFields
from server.cli.train import TrainFields
from server.config import BadOption, Settings
from server.jobs.queue.train_options import TrainOptions
from server.wiring.process import environment


def parse(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return read_fields(parser.parse_args(arguments), Settings)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"VERANDAH_{name.upper()}", raising=False)


def test_every_setting_is_an_option() -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    text = parser.format_help()
    for name, field in Settings.model_fields.items():
        assert "--" + name.replace("_", "-") in text
        assert (field.description or "?").split()[0] in text


def test_nothing_given_is_the_default() -> None:
    assert parse() == Settings()


def test_options_of_every_kind() -> None:
    settings = parse(
        "--home=/data", "--port=9", "--dtype=bfloat16", "--lease-s=2.5", "--no-worker",
        "--pinned=a,b@2", "--api-key=k", "--database-url=sqlite:////x.db",
    )  # fmt: skip
    assert settings.home == Path("/data")
    assert (settings.port, settings.dtype, settings.lease_s) == (9, "bfloat16", 2.5)
    assert not settings.worker
    assert settings.pinned == ("a", "b@2")
    assert settings.api_key is not None and settings.api_key.get_secret_value() == "k"
    assert settings.database == "sqlite:////x.db"


def test_an_option_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERANDAH_MAX_RANK", "8")
    assert parse().max_rank == 8
    assert parse("--max-rank=16").max_rank == 16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port=abc"], "--port 'abc': "),
        (["--max-rank=5000"], "--max-rank '5000': "),
        (["--device=tpu"], "--device 'tpu': "),
        (["--max-batch-rows=600", "--max-step-tokens=512"], "max_step_tokens=512 is below"),
        (["--allowed-origins=https://a.example/"], "--allowed-origins 'https://a.example/': "),
        (["--served-name=pirate@3"], "served_name='pirate@3' is no id of a base model"),
    ],
)
def test_a_bad_option_is_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(BadOption) as caught:
        parse(*arguments)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("https://a.example/", "write https://a.example"),
        ("https://a.example/chat?x=1#y", "write https://a.example"),
        ("a.example", "write https://a.example"),
        ("//a.example", "'//a.example' is not an origin: write SCHEME://HOST"),
        ("HTTPS://A.Example:443", "write https://a.example"),
        ("http://a.example:80", "write http://a.example"),
        ("https://ann:secret@a.example", "write https://a.example"),
        ("https://bücher.example", "write https://xn--bcher-kva.example"),
        ("https://*.example", "'https://*.example' is not an origin"),
        ("https://", "'https://' is not an origin"),
        ("https://a b", "'https://a b' is not an origin"),
        ("http://a.example:99999", "'http://a.example:99999' is not an origin"),
        ("http://[::1", "'http://[::1' is not an origin"),
        ("https://ok.example,https://a.example/", "write https://a.example"),
        ("*,https://a.example", "* allows every origin: give it alone"),
    ],
)
def test_what_is_no_origin_is_told_its_right_form(value: str, said: str) -> None:
    with pytest.raises(BadOption) as caught:
        parse(f"--allowed-origins={value}")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["*", "null", "http://localhost:3000", "http://[::1]:8080", "chrome-extension://abcd",
     "https://a.example,http://127.0.0.1:5173", "https://xn--bcher-kva.example"],
)  # fmt: skip
def test_origins_as_browsers_send_them(value: str) -> None:
    assert parse(f"--allowed-origins={value}").allowed_origins == tuple(value.split(","))
    assert parse("--allowed-origins= https://a.example, null").allowed_origins[1] == "null"
    assert parse().allowed_origins == ()


def test_all_bad_options_are_named_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERANDAH_MAX_WAITING", "0")
    with pytest.raises(BadOption) as caught:
        parse("--port=abc", "--max-rank=5000", "--device=tpu", "--api-key=k")
    assert str(caught.value).split("; ") == [
        "--port 'abc': not a whole number: give one",
        "--device 'tpu': not one of 'auto', 'cpu' or 'cuda': give one of them",
        "VERANDAH_MAX_WAITING '0': below 1: give at least 1",
        "--max-rank '5000': above 1024: give at most 1024",
    ]


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERANDAH_PORT", "x")
    with pytest.raises(BadOption, match="VERANDAH_PORT 'x'"):
        parse()


def test_a_list_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERANDAH_PINNED", "a,b@2")
    assert parse().pinned == ("a", "b@2")


def test_a_child_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse(
        "--api-key=k",
        "--pinned=a,b",
        "--allowed-origins=null,http://a",
        "--no-worker",
        "--port=9",
        "--home=/data",
        "--kv-memory-mb=3",
    )
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert parse() == settings


def parse_train(*arguments: str) -> TrainFields:
    parser = argparse.ArgumentParser()
    add_fields(parser, TrainFields, "training", example="rank")
    return read_fields(parser.parse_args(arguments), TrainFields)


@pytest.mark.parametrize("kind", [TrainFields, ChatFields])
def test_a_commands_own_options_are_variables_too(
    kind: type[TrainFields | ChatFields], monkeypatch: pytest.MonkeyPatch
) -> None:
    special = {"wait": "false", "dry_run": "true", "metadata": "a=1,b=c=2"}
    values = {name: special.get(name, "7") for name in kind.model_fields}
    for name, value in values.items():
        monkeypatch.setenv(f"VERANDAH_{kind.__name__.removesuffix('Fields')}_{name}".upper(), value)
    parser = argparse.ArgumentParser()
    add_fields(parser, kind, "own", example="seed")
    read = read_fields(parser.parse_args(["--seed=8"]), kind)
    assert read == kind.model_validate({**values, "seed": 8})
    assert read != kind.model_construct()


def test_training_options_become_hyperparameters() -> None:
    fields = parse_train("--method=randlora", "--sparsity=sqrt", "--targets=attention")
    assert fields.hyperparameters() == {
        "method": "randlora",
        "sparsity": "sqrt",
        "targets": "attention",
    }
    fields = parse_train("--sparsity=6", "--targets=q_proj,v_proj", "--epochs=3", "--name=x")
    assert fields.hyperparameters() == {
        "sparsity": 6.0,
        "targets": ["q_proj", "v_proj"],
        "n_epochs": 3,
    }
    assert parse_train().hyperparameters() == {}


def test_every_method_option_can_be_trained_with() -> None:
    others = {"name", "epochs", "wait", "go_on_from", "validation_file", "metadata", "dry_run"}
    offered = set(TrainFields.model_fields) - others | {"n_epochs"}
    assert offered == {field.name for field in dataclasses.fields(TrainOptions)}


def test_pairs_are_given_once_for_each_or_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = parse_train("--metadata=team=red", "--metadata=note=a,b=c")
    assert asked.metadata == {"team": "red", "note": "a,b=c"}
    monkeypatch.setenv("VERANDAH_TRAIN_METADATA", "team=red,run=7")
    assert parse_train().metadata == {"team": "red", "run": "7"}
    for wrong, said in (("red", "write KEY=VALUE"), ("=x", "write KEY=VALUE")):
        with pytest.raises(BadOption, match=f"^--metadata .*{said}"):
            parse_train(f"--metadata={wrong}")
    with pytest.raises(BadOption, match="'a' is given twice"):
        parse_train("--metadata=a=1", "--metadata=a=2")


def test_a_bad_training_option_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadOption, match=r"^--rank 'x': "):
        parse_train("--rank=x")
    monkeypatch.setenv("VERANDAH_TRAIN_RANK", "x")
    with pytest.raises(BadOption, match=r"^VERANDAH_TRAIN_RANK 'x': "):
        parse_train()


@pytest.mark.parametrize("value", ["inf", "nan", "1e400", "1e30", "9" * 5000, "-1", "1_0_", ""])
def test_no_setting_takes_a_number_without_bound(value: str) -> None:
    free = {"training_latency": ("inf", "1e400", "1e30", "9" * 5000)}  # "inf: no limit"
    for name, field in Settings.model_fields.items():
        if field.annotation in (int, float) and value not in free.get(name, ()):
            with pytest.raises(BadOption) as raised:
                parse(f"--{name.replace('_', '-')}={value}")
            assert str(raised.value).startswith(f"--{name.replace('_', '-')} '{value[:9]}")
            assert len(str(raised.value)) < 250


@pytest.mark.parametrize("value", ["inf", "nan", "1e400"])
def test_no_number_of_a_command_is_infinite(value: str) -> None:
    parser = argparse.ArgumentParser()
    add_fields(parser, TrainFields, "training", example="rank")
    with pytest.raises(BadOption, match="--learning-rate"):
        read_fields(parser.parse_args([f"--learning-rate={value}"]), TrainFields)
