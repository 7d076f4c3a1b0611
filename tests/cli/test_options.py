"""Every setting is an option and a variable; a bad one is one line."""

import argparse
from pathlib import Path

import pytest

from server.cli.itself import environment
from server.cli.options import BadOption, add_settings, read_settings
from server.config import Settings


def parse(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return read_settings(parser.parse_args(arguments))


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
        (["--max-batch-rows=600"], "max_step_tokens=512 is below max_batch_rows=600"),
    ],
)
def test_a_bad_option_is_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(BadOption) as caught:
        parse(*arguments)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERANDAH_PORT", "x")
    with pytest.raises(BadOption, match="VERANDAH_PORT 'x'"):
        parse()


def test_a_list_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERANDAH_PINNED", "a,b@2")
    assert parse().pinned == ("a", "b@2")


def test_a_child_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse(
        "--api-key=k", "--pinned=a,b", "--no-worker", "--port=9", "--home=/data", "--kv-memory-mb=3"
    )
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert parse() == settings
