"""Every method, from a job's options to an adapter that has learnt and can be published."""

import io
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from adapters_store.manifest import AdapterRef, Manifest
from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.methods.registry import kind_named, method_named
from server.errors import InvalidRequest
from server.jobs.queue.method_spec import OPTIONS
from server.jobs.queue.train_options import TrainOptions
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.job.start import Start
from server.training.job.training_setup import TrainingSetup, prepare
from server.training.run.defaults import plan_for
from server.training.run.run_steps import run
from tests.bases.test_default_prompt import ADDED
from tests.training.chats import MARKED, byte_tokenizer
from tests.training.workplace import BASE, OWNER, Workplace, lines, load_tiny

VARIANTS = [
    TrainOptions(method="vera"),
    TrainOptions(method="vera", trained="d"),
    TrainOptions(method="vera", trained="b", basis="per-layer"),
    TrainOptions(method="randlora"),
    TrainOptions(method="randlora", sparsity="sqrt", targets="attention"),
    TrainOptions(method="randlora", sparsity=3),
    TrainOptions(method="asymmetric-lora"),
    TrainOptions(method="asymmetric-lora", trained="A", alpha=4),
    TrainOptions(method="lora", rank=4),
]


def setup_of(home: Path, options: TrainOptions) -> TrainingSetup:
    place = Workplace.at(home)
    file = place.files.create(OWNER, "chats.jsonl", "fine-tune", io.BytesIO(lines(24)))
    quick = replace(options, n_epochs=3)
    job = place.queue.create(OWNER, BASE, file.id, seed=7, hyperparameters=quick)
    return prepare(job, place.files, *load_tiny(), max_rank=16)


@pytest.mark.parametrize("options", VARIANTS, ids=TrainOptions.to_json)
def test_a_job_of_every_method_learns(tmp_path: Path, options: TrainOptions) -> None:
    setup = setup_of(tmp_path, options)
    first, *_, last = run(setup.trainer)
    assert first.valid_loss is not None and last.valid_loss is not None
    assert last.valid_loss < first.valid_loss
    manifest = setup.manifest(TrainingMetrics(1, train_loss=1.0))
    assert (manifest.method, manifest.rank) == (options.method, setup.plan.rank)
    if setup.plan.alpha is not None:
        assert manifest.scale == setup.plan.alpha / setup.plan.rank
    method = method_named(manifest.method, manifest.options)
    again = TrainableAdapter(
        load_tiny()[0], method.name, manifest.rank, manifest.seed, manifest.targets,
        manifest.options,
    )  # fmt: skip
    again.load_tensors(setup.adapter.tensors())
    assert again.manifest(created_at=0, provenance={}).basis_spec == manifest.basis_spec


def test_the_root_of_the_width_is_a_number_once_trained(tmp_path: Path) -> None:
    """So that another base's width, or another rule, never changes an adapter at rest."""
    setup = setup_of(tmp_path, TrainOptions(method="randlora", sparsity="sqrt"))
    assert setup.plan.sparsity == "sqrt"
    assert float(setup.manifest(TrainingMetrics(0)).options["sparsity"]) == pytest.approx(48**0.5)


def test_the_summary_says_what_is_trained(tmp_path: Path) -> None:
    setup = setup_of(tmp_path, TrainOptions(method="asymmetric-lora", trained="A"))
    assert "(asymmetric-lora A, rank 8)" in setup.summary()
    rate = f"{setup.plan.learning_rate:g}"
    assert setup.summary().endswith(f"steps of 4, learning rate {rate} (cosine)")


@pytest.mark.parametrize("options", VARIANTS, ids=TrainOptions.to_json)
def test_no_option_of_a_prepared_job_is_left_open(tmp_path: Path, options: TrainOptions) -> None:
    setup = setup_of(tmp_path, options)
    told = setup.options()
    assert not {None, "auto"} & {str(value) for value in told.values()}
    spec = kind_named(options.method).spec
    absent = {name for name in OPTIONS if not spec.variant(options.trained).has(name)}
    assert {field.name for field in fields(TrainOptions)} - set(told) == absent | {"early_stopping"}
    named = {name: value for name, value in asdict(options).items() if value is not None}
    assert named.items() <= told.items()
    assert (told["n_epochs"], told["batch_size"], told["learning_rate_multiplier"]) == (3, 4, 1.0)
    provenance = setup.manifest(TrainingMetrics(1)).provenance
    assert provenance["learning_rate"] == str(setup.plan.learning_rate)
    assert (provenance["n_epochs"], provenance["schedule"]) == ("3", "cosine")
    again = TrainOptions(**{**told, "learning_rate_multiplier": None})  # type: ignore[arg-type]
    assert plan_for(again, seed=7, max_rank=16, lines=24) == setup.plan


@pytest.mark.parametrize(
    ("asked", "rate", "times"),
    [
        ({}, 0.1, 1.0),
        ({"learning_rate": 0.25}, 0.25, 2.5),
        ({"learning_rate_multiplier": 0.1}, 0.01, 0.1),
    ],
)
def test_the_learning_rate_is_told_both_ways(
    tmp_path: Path, asked: dict[str, float], rate: float, times: float
) -> None:
    told = setup_of(tmp_path, TrainOptions(**asked)).options()  # type: ignore[arg-type]
    assert told["learning_rate"] == pytest.approx(rate)
    assert told["learning_rate_multiplier"] == pytest.approx(times)


@pytest.mark.parametrize(("template", "left_out"), [(ADDED, True), (MARKED, False)])
def test_lines_stand_without_the_templates_own_system_prompt(
    tmp_path: Path, template: str, left_out: bool
) -> None:
    place = Workplace.at(tmp_path)
    file = place.files.create(OWNER, "chats.jsonl", "fine-tune", io.BytesIO(lines(4)))
    tokenizer, sources = byte_tokenizer(template), (place.files, load_tiny()[0])

    def prepared(start: Start | None = None) -> tuple[Manifest, str]:
        model = BASE if start is None else str(start.ref)
        job = place.queue.create(OWNER, model, file.id, seed=7, hyperparameters=TrainOptions())
        setup = prepare(job, *sources, tokenizer, max_rank=16, start=start)
        manifest = setup.manifest(TrainingMetrics(1))
        return manifest, tokenizer.decode(setup.train[0].tokens, skip_special=False)

    manifest, text = prepared()
    assert manifest.default_prompt is not left_out
    assert ("Help." in text) is False
    adapter = prepare(
        place.queue.create(OWNER, BASE, file.id, seed=7, hyperparameters=TrainOptions()),
        *sources, tokenizer, max_rank=16,
    ).adapter  # fmt: skip
    for kept in (True, False):  # whoever continues an adapter writes chats as that one has them
        header = replace(manifest, default_prompt=kept)
        continued, text = prepared(Start(AdapterRef(OWNER, "a", 1), header, adapter.tensors()))
        assert continued.default_prompt is (kept or not left_out)
        assert ("Help." in text) is (kept and left_out)


def test_targets_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no_proj"):
        setup_of(tmp_path, TrainOptions(method="randlora", sparsity="sqrt", targets=("no_proj",)))
