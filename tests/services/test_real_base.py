"""The base that the demo uses, with its real download: fetched, served, trained on and asked."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.python import Client
from server.bases.short_names import PREFERRED, SHORT_NAMES
from server.cli.demo import FILES

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

ROW = SHORT_NAMES[PREFERRED]
_NOT_TO_BE_HAD = ("does not answer", "Could not find a version", "neither is here")
VERANDAH = [sys.executable, "-m", "server"]


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a user without a base, who then fetches it."""
    cache = tmp_path_factory.mktemp("cache")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VERANDAH_")}
    environment |= {"XDG_CACHE_HOME": str(cache)}
    fetched = subprocess.run(
        [*VERANDAH, "fetch", ROW.name], env=environment, capture_output=True, text=True
    )
    if any(sign in fetched.stderr for sign in _NOT_TO_BE_HAD):
        pytest.skip(f"the package {ROW.package} cannot be had: {fetched.stderr.splitlines()[-1]}")
    assert fetched.returncode == 0, fetched.stderr
    return environment


@pytest.fixture(scope="module")
def client(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a server that was given no --model."""
    folder = tmp_path_factory.mktemp("served")
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*VERANDAH, "serve", "--port", "0", "--home", str(folder / "home")],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("serving at "), log.read_text()
        assert f"the base model is {ROW.name}: no --model was given" in log.read_text()
        with Client(line.removeprefix("serving at ").strip()) as client:
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_the_base_is_the_one_that_its_name_means(client: Client) -> None:
    answer = client.answer(
        "base",
        [{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=20,
    )
    assert "Paris" in answer


def test_an_adapter_learns_and_answers_in_its_voice(client: Client, tmp_path: Path) -> None:
    lines = FILES[0].read_text().splitlines()
    some, others = tmp_path / "pirate.jsonl", tmp_path / "others.jsonl"
    some.write_text("\n".join(lines[:24]))
    others.write_text("\n".join(lines[24:32]))
    job = client.train(
        client.upload(some).id,
        validation_file=client.upload(others).id,
        suffix="pirate",
        hyperparameters={"n_epochs": 2, "checkpoints": 0},
    )
    losses = [
        event.data["valid_loss"]
        for event in client.follow(job.id)
        if event.type == "metrics" and event.data.get("valid_loss") is not None
    ]
    done = client.wait(job.id)
    assert losses[-1] < losses[0] - 0.3, losses
    adapter = client.adapter(str(done.fine_tuned_model))
    assert adapter.raw["base_name"] == ROW.name
    assert adapter.raw["base_fingerprint"] == ROW.fingerprint
    question = [{"role": "user", "content": json.loads(lines[40])["messages"][0]["content"]}]
    base, pirate = (
        client.answer(model, question, temperature=0, max_tokens=30)
        for model in ("base", str(done.fine_tuned_model))
    )
    assert pirate and pirate != base
