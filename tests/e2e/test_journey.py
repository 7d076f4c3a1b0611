"""Upload, train, ask: the whole way with the official SDK, and what kills cannot undo."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import NotFoundError, OpenAI
from openai.types.fine_tuning import FineTuningJob

from clients.python import Client
from tests.e2e.conftest import ROOT, Served, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRAINING_TIMEOUT_S = 200
QUESTION = "How do I plant a tree?"
QUICK = {"n_epochs": 3}  # enough to hear the difference, not to speak well


def train(sdk: OpenAI, style: str, **hyperparameters: object) -> FineTuningJob:
    with (ROOT / "examples" / f"{style}.jsonl").open("rb") as lines:
        file = sdk.files.create(file=lines, purpose="fine-tune")
    return sdk.fine_tuning.jobs.create(
        model="base",
        training_file=file.id,
        suffix=style,
        seed=1,
        hyperparameters=QUICK | hyperparameters,  # type: ignore[arg-type]
    )


def ended(sdk: OpenAI, job: FineTuningJob) -> FineTuningJob:
    """The job once it has ended well."""

    def over() -> bool:
        return sdk.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed", "cancelled")

    wait_until(over, TRAINING_TIMEOUT_S)
    job = sdk.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    return job


def answer(sdk: OpenAI, model: str) -> str:
    said = sdk.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=40,
    )
    return said.choices[0].message.content or ""


def steps_told(sdk: OpenAI, job: FineTuningJob) -> list[int]:
    """The steps of the job's metrics events, oldest first."""
    events = list(sdk.fine_tuning.jobs.list_events(job.id, limit=100))
    found = [event.data for event in reversed(events) if event.type == "metrics"]
    return [int(data["step"]) for data in found if isinstance(data, dict)]


def test_upload_train_ask(make_server: Callable[..., Served]) -> None:
    served = make_server()
    sdk = served.sdk
    jobs = [ended(sdk, job) for job in [train(sdk, "pirate"), train(sdk, "butler")]]
    assert [job.fine_tuned_model for job in jobs] == ["pirate@3", "butler@3"]

    with ThreadPoolExecutor() as pool:
        base, pirate, butler = pool.map(
            lambda model: answer(sdk, model), ["base", "pirate", "butler@3"]
        )
    assert len({base, pirate, butler}) == 3
    assert "Arr" in pirate and "Arr" not in base + butler
    assert "guest" in butler and "guest" not in base + pirate
    assert answer(sdk, "pirate") == pirate, "an answer depends on its neighbours"

    assert {model.id for model in sdk.models.list()} >= {"base", "pirate", "butler"}
    with pytest.raises(NotFoundError) as unknown:
        answer(sdk, "parrot")
    assert unknown.value.code == "model_not_found"

    losses = [
        event.data["train_loss"]
        for event in sdk.fine_tuning.jobs.list_events(jobs[0].id, limit=100)
        if event.type == "metrics" and isinstance(event.data, dict) and "train_loss" in event.data
    ]
    assert losses[0] < losses[-1], "events come newest first, and the loss fell"
    checkpoints = list(sdk.fine_tuning.jobs.checkpoints.list(jobs[0].id))
    assert [found.fine_tuned_model_checkpoint for found in checkpoints] == [
        "pirate@3",
        "pirate@2",
        "pirate@1",
    ]
    assert answer(sdk, "pirate@1") not in (base, butler)
    table = sdk.files.content(jobs[0].result_files[0]).text.splitlines()
    assert len(table) == 2 + checkpoints[0].step_number  # its header, and step 0

    with Client(served.url) as client:
        analysis = client.analysis("pirate", "butler")
    assert analysis.comparison is not None and len(analysis.comparison.layers) == 63
    assert all(layer.norm > 0 and layer.numerical_rank == 64 for layer in analysis.layers)

    assert served.stop() == 0
    again = make_server("--no-worker")
    assert answer(again.sdk, "pirate") == pirate


def test_a_job_outlives_its_worker_and_its_server(make_server: Callable[..., Served]) -> None:
    served = make_server()
    sdk = served.sdk
    job = train(sdk, "pirate", n_epochs=2)
    wait_until(lambda: max(steps_told(sdk, job), default=0) >= 3, TRAINING_TIMEOUT_S)
    served.worker().kill()
    seen = max(steps_told(sdk, job))
    wait_until(lambda: max(steps_told(sdk, job)) > seen, TRAINING_TIMEOUT_S)
    served.kill()

    again = make_server()
    done = ended(again.sdk, job)
    told = steps_told(again.sdk, job)
    assert done.fine_tuned_model == "pirate@2"  # after the checkpoint of the first epoch
    assert told == sorted(set(told)), "no step was told twice"
    assert answer(again.sdk, "pirate") != answer(again.sdk, "base")
