"""`verandah train`: uploads a file, starts a job and shows its progress. Trains nothing itself."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, cast

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from clients.python import Client, ClientError, Hyperparameters, Job
from server.cli.arguments.options import add_fields, read_fields
from server.cli.arguments.server_address import add_server, connect, same_server
from server.cli.display.job_watch import watch_job
from server.cli.display.output import one_line, print_fields, print_json, problem_lines
from server.config import BadOption
from server.jobs.queue.train_options import (
    BASES,
    DEFAULT_METHOD,
    PUBLISH,
    SCHEDULES,
    SPARSITIES,
    TARGET_SETS,
)
from server.option_values import PAIRS, WITH_COMMAS

EXAMPLES = """examples:
  verandah train pirate.jsonl                      trains the adapter "pirate"
  verandah train notes.jsonl --name my-notes       names it
  verandah train notes.jsonl --epochs 5 --rank 64 --learning-rate 0.02
  verandah train notes.jsonl --method lora --rank 8 --targets q_proj,v_proj
  verandah train notes.jsonl --method randlora --sparsity sqrt
  verandah train more.jsonl --go-on-from notes@2 --name notes
  verandah train notes.jsonl --validation-file more.jsonl --metadata team=red --metadata run=7
  verandah train notes.jsonl --dry-run             what the job would take, or its wrong lines
  verandah train notes.jsonl --no-wait             prints the job's id and leaves it running

Ctrl-C leaves the job running too: `verandah jobs` lists jobs, comes back to them and ends them.
`verandah methods` shows what each method trains, and how much.
"""

# Sent elsewhere, or not at all.
_NO_OPTIONS = {"name", "go_on_from", "validation_file", "metadata", "seed", "dry_run", "wait"}


class TrainFields(BaseSettings):
    """The options of `verandah train`. None leaves a value to the server."""

    model_config = SettingsConfigDict(
        env_prefix="VERANDAH_TRAIN_", frozen=True, extra="forbid", allow_inf_nan=False
    )

    name: str | None = Field(None, description="the adapter's name; default: the file's")
    go_on_from: str | None = Field(None, description="continue this adapter; default: the base")
    method: str | None = Field(
        None, description=f"one that `verandah methods` lists; default: {DEFAULT_METHOD}"
    )
    rank: int | None = Field(None, description="rank of the adapter; default: the method's")
    targets: Annotated[tuple[str, ...] | None, *WITH_COMMAS] = Field(
        None, description=f"{', '.join(TARGET_SETS)}, or names of linears; default: the method's"
    )
    trained: str | None = Field(
        None, description="what to train: d+b, d or b of vera; B or A of asymmetric-lora"
    )
    basis: str | None = Field(
        None, description=f"vera's random matrices: {' or '.join(BASES)}; default: {BASES[0]}"
    )
    sparsity: float | str | None = Field(
        None,
        union_mode="left_to_right",
        description=f"randlora's random matrices: {', '.join(SPARSITIES)}, or s: one entry "
        "in s is not zero; default: dense",
    )
    alpha: float | None = Field(
        None,
        description="lora and asymmetric-lora: the scale is alpha / rank; default: twice the rank",
    )
    d_initial: float | None = Field(None, description="the start value of vera's d")
    dropout: float | None = Field(
        None, description="share of its input that an adapter drops in training"
    )
    learning_rate: float | None = Field(None, description="the highest; default: the method's")
    learning_rate_multiplier: float | None = Field(
        None, description="times the default learning rate, instead of --learning-rate"
    )
    schedule: str | None = Field(
        None,
        description=f"of the learning rate: {', '.join(SCHEDULES)}; default: {SCHEDULES[0]}",
    )
    warmup_ratio: float | None = Field(
        None, description="share of the steps in which the learning rate rises; default: 0.06"
    )
    weight_decay: float | None = Field(None, description="AdamW's; default: 0")
    max_grad_norm: float | None = Field(
        None, description="longer gradients are cut to this length; default: 1"
    )
    epochs: int | None = Field(None, description="passes over the file; default: by its length")
    batch_size: int | None = Field(None, description="examples per step; default: by the file")
    max_tokens_per_batch: int | None = Field(
        None, description="positions of one forward pass; default: 2048"
    )
    validation_file: Path | None = Field(
        None, description="JSONL whose lines are scored and not learnt"
    )
    validation_split: float | None = Field(
        None, description="share of the file to score and not learn; default: 0.1"
    )
    early_stopping: int | None = Field(
        None, description="end after this many scores without a better one; default: never"
    )
    checkpoints: int | None = Field(
        None, description="versions published during training; default: up to 2"
    )
    publish: str | None = Field(
        None,
        description=f"when to publish a result: {' or '.join(PUBLISH)}; default: {PUBLISH[0]}",
    )
    seed: int | None = Field(None, description="seed of the lines' order and of the held-out lines")
    metadata: Annotated[dict[str, str] | None, *PAIRS] = Field(
        None, description="kept with the job; give it once for each pair"
    )
    dry_run: bool = Field(False, description="check the files and estimate the job; train nothing")
    wait: bool = Field(True, description="wait for the job's end")

    def hyperparameters(self) -> Hyperparameters:
        """The options that are set, by the API's names."""
        values = self.model_dump(exclude=_NO_OPTIONS, exclude_none=True)
        if self.epochs is not None:
            values["n_epochs"] = values.pop("epochs")
        if self.targets is not None:
            by_name = len(self.targets) == 1 and self.targets[0] in TARGET_SETS
            values["targets"] = self.targets[0] if by_name else list(self.targets)
        return cast(Hyperparameters, values)


FIELDS = TrainFields


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] FILE"
    parser.add_argument("file", type=Path, help="JSONL: chat messages, or prompt and completion")
    parser.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    add_fields(parser, TrainFields, "training", example="learning_rate")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    fields = read_fields(options, TrainFields)
    paths = [options.file] + ([fields.validation_file] if fields.validation_file else [])
    for path in paths:
        if not path.is_file():
            raise BadOption(f"{path} does not exist: name a JSONL file of training lines")
    name = fields.name or Path(options.file.name.removesuffix(".gz")).stem
    with connect(options) as client:
        if fields.dry_run:
            return _check(client, paths, name, fields, as_json=options.json)
        with _uploaded(client, paths) as (training_file, validation_file):
            job = client.train(
                training_file,
                model=fields.go_on_from,
                validation_file=validation_file,
                suffix=name,
                seed=fields.seed,
                metadata=fields.metadata,
                hyperparameters=fields.hyperparameters(),
            )
        if fields.wait:
            job = watch_job(client, job.id, name, same_server(options))
        else:
            _tell_warnings(client, job)
        if options.json:
            print_json(job.raw)
        else:
            print(job.fine_tuned_model or job.id)
    return 0


@contextmanager
def _uploaded(client: Client, paths: Sequence[Path]) -> Iterator[tuple[str, str | None]]:
    """The ids of the uploaded files. If what follows fails, no job uses them, and they go."""
    ids: list[str] = []
    try:
        ids.extend(client.upload(path).id for path in paths)
        yield ids[0], ids[1] if len(ids) > 1 else None
    except BaseException:  # Ctrl-C too
        _discard(client, ids)
        raise


def _discard(client: Client, ids: Sequence[str]) -> None:
    for file_id in ids:
        with suppress(ClientError):
            client.delete_file(file_id)


def _check(
    client: Client, paths: Sequence[Path], name: str, fields: TrainFields, *, as_json: bool
) -> int:
    """Print what the job would take, or the lines that are wrong. No file stays."""
    with _uploaded(client, paths) as ids:
        told = client.dry_run(
            ids[0],
            model=fields.go_on_from,
            validation_file=ids[1],
            suffix=name,
            seed=fields.seed,
            metadata=fields.metadata,
            hyperparameters=fields.hyperparameters(),
        )
    _discard(client, [file_id for file_id in ids if file_id])
    valid = bool(told["valid"])
    if as_json:
        print_json(told)
    elif valid:
        print_fields(told["appraisal"])
    else:
        print(problem_lines(told["problems"]), file=sys.stderr)
    return 0 if valid else 1


def _tell_warnings(client: Client, job: Job) -> None:
    """What `watch_job` would have shown: lines that look odd, or that no worker runs."""
    for event in client.events(job.id):
        if event.level != "info":
            print(f"verandah: {one_line(event.message)}", file=sys.stderr)
