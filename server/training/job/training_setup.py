"""A job made ready to train: its lines as examples, its options as a plan, and a trainer of both.

Knows no queue.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

from adapters_store.manifest import Manifest
from server.adapters.learning.targets import resolve_targets
from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.memory.matrices import SharedBases
from server.adapters.methods.registry import kind_named
from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.jobs.files.datasets import lines_of, validate
from server.jobs.files.file_store import Files
from server.jobs.queue import continuing
from server.jobs.queue.job import Job
from server.jobs.queue.method_spec import OPTIONS
from server.jobs.queue.train_options import TrainOptions
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.job.publish import JOB, STEP
from server.training.job.samples import Question, questions_of
from server.training.job.start import Start, adapter_for, asked_by
from server.training.run.batches import held_out
from server.training.run.defaults import TrainPlan, check_early_stopping, plan_for, usual_rate
from server.training.run.examples import Example, LineEncoder, build_examples
from server.training.run.trainer import Trainer

_OPTIONS: Final = tuple(field.name for field in fields(TrainOptions))
_IN_HEADER: Final = ("method", "rank", "targets", *OPTIONS)  # a manifest has fields for these
_Line = tuple[Mapping[str, object], Sequence[Example]]
"""A record, and its examples."""


@dataclass(frozen=True)
class TrainingSetup:
    job: Job
    plan: TrainPlan
    adapter: TrainableAdapter
    trainer: Trainer
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    questions: tuple[Question, ...]
    tokenizer: ChatTokenizer
    start: Start | None
    usual_rate: float  # the learning rate of a job that names none

    def summary(self) -> str:
        """What is about to happen, in a sentence."""
        count = sum(parameter.numel() for parameter in self.adapter.parameters())
        begins = "Training" if self.start is None else f"Continuing {self.start.ref}: training"
        held_out = f", with {len(self.valid)} more held out" if self.valid else ""
        plan = self.plan
        epochs = "1 epoch" if plan.n_epochs == 1 else f"{plan.n_epochs} epochs"
        method = plan.method if plan.trained is None else f"{plan.method} {plan.trained}"
        return (
            f"{begins} {count} parameters ({method}, rank {plan.rank}) on "
            f"{len(self.train)} examples{held_out}: {epochs}, {self.trainer.total_steps} steps of "
            f"{plan.batch_size}, learning rate {plan.learning_rate:g} ({plan.schedule})"
        )

    def options(self) -> dict[str, object]:
        """Every option as it is used. Options that the method lacks are left out."""
        plan = self.plan
        values = {name: getattr(plan, name, None) for name in _OPTIONS}
        times_usual = plan.learning_rate / self.usual_rate
        values["learning_rate_multiplier"] = float(f"{times_usual:.6g}")
        if self.job.validation_file is not None:
            values["validation_split"] = 0.0
        if self.start is not None:
            manifest = self.start.manifest
            own = continuing.method_options(manifest, kind_named(manifest.method).spec)
            values |= {name: _number_or_text(value) for name, value in own.items()}
            values["targets"] = _names_of(self.trainer.base, manifest.targets)
        return {name: value for name, value in values.items() if value is not None}

    def manifest(self, metrics: TrainingMetrics, step: int | None = None) -> Manifest:
        """The header of the adapter with these metrics, or of its checkpoint at `step`."""
        facts = {
            JOB: self.job.id,
            "training_file": self.job.training_file,
            "train_loss": _short(metrics.train_loss),
            "valid_loss": _short(metrics.valid_loss),
            "base_valid_loss": _short(metrics.base_valid_loss),
            "trained_tokens": metrics.trained_tokens,
            STEP: step,
            "continued_from": self.start and self.start.ref.id_for(self.job.owner),
            **{name: value for name, value in self.options().items() if name not in _IN_HEADER},
        }
        provenance = {key: str(value) for key, value in facts.items() if value is not None}
        header = self.adapter.manifest(created_at=int(time.time()), provenance=provenance)
        return replace(header, default_prompt=self.tokenizer.has_default_prompt)


def prepare(
    job: Job,
    files: Files,
    base: BaseModel,
    tokenizer: ChatTokenizer,
    *,
    max_rank: int,
    shared: SharedBases | None = None,
    start: Start | None = None,
) -> TrainingSetup:
    """Read the job's files, and build its adapter and trainer.

    Args:
        max_rank: the largest that is served.
        shared: see `TrainableAdapter`.
        start: the adapter to continue; None: a new one is made.

    Raises:
        InvalidDataset: lines that cannot be read or trained on, by number.
        InvalidRequest: options that do not fit the base model, or contradict the start.
        NotFound: a file is gone.
        FileDamaged: a file is no longer what was uploaded.
        TrainingFailed: no line holds anything to learn.
    """
    tokenizer = asked_by(tokenizer, None if start is None else start.manifest)
    encoder = LineEncoder.of(base, tokenizer)
    train = _lines(job, job.training_file, "training_file", files, encoder)
    plan = plan_for(job.hyperparameters, seed=job.seed, max_rank=max_rank, lines=len(train))
    usual = usual_rate(job.hyperparameters, len(train))
    if job.validation_file is not None:
        valid = _lines(job, job.validation_file, "validation_file", files, encoder)
    else:
        scored = held_out(len(train), plan.validation_split, seed=plan.seed)
        valid = [line for index, line in enumerate(train) if index in scored]
        train = [line for index, line in enumerate(train) if index not in scored]
    adapter = adapter_for(job, plan, base, start, shared)
    flat_train = tuple(example for _, examples in train for example in examples)
    flat_valid = tuple(example for _, examples in valid for example in examples)
    trainer = Trainer(base, adapter, flat_train, flat_valid, plan)
    check_early_stopping(plan, len(flat_valid))
    questions = questions_of(valid if flat_valid else train, base.max_context, encoder.ends)
    lines = flat_train, flat_valid, questions
    return TrainingSetup(job, plan, adapter, trainer, *lines, tokenizer, start, usual)


def _number_or_text(value: float | str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _names_of(base: BaseModel, paths: Sequence[str]) -> list[str]:
    """The linears by the names that mean exactly these, or by their paths."""
    names = sorted({path.rpartition(".")[2] for path in paths})
    return names if set(resolve_targets(base, names)) == set(paths) else list(paths)


def _short(loss: float | None) -> str | None:
    return None if loss is None else f"{loss:.4f}"


def _lines(job: Job, file_id: str, param: str, files: Files, encoder: LineEncoder) -> list[_Line]:
    with files.verified(job.owner, file_id, of_job=True) as file:
        dataset = validate(lines_of(file), min_examples=1, param=param)
    records = [record for _, record in dataset.records]
    examples = build_examples(dataset.records, encoder, param=param)
    return list(zip(records, examples, strict=True))
