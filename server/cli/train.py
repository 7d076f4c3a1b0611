"""`verandah train`: uploads a file, starts a job and shows its progress. Trains nothing itself."""

import argparse
from pathlib import Path
from typing import Annotated, cast

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console
from rich.text import Text

from clients.python import Client, Hyperparameters, Job, JobFailed
from server.cli.options import add_fields, add_server, connect, read_fields
from server.cli.progress import TrainingBars
from server.config import WITH_COMMAS, BadOption
from server.control_characters import visible_lines
from server.jobs.queue.train_options import BASES, DEFAULT_METHOD, PUBLISH, SPARSITIES, TARGET_SETS

EXAMPLES = """examples:
  verandah train pirate.jsonl                      trains the adapter "pirate"
  verandah train notes.jsonl --name my-notes       names it
  verandah train notes.jsonl --epochs 5 --rank 64 --learning-rate 0.02
  verandah train notes.jsonl --method lora --rank 8 --targets q_proj,v_proj
  verandah train notes.jsonl --method randlora --sparsity sqrt
  verandah train more.jsonl --go-on-from notes@2 --name notes
  verandah train notes.jsonl --no-wait             prints the job's id and leaves it running

`verandah methods` shows what each method trains, and how much.
"""

_NOT_OF_THE_METHOD = {"name", "go_on_from", "seed", "wait"}  # sent elsewhere, or not at all


class TrainFields(BaseSettings):
    """The options of `verandah train`. None leaves a value to the server."""

    model_config = SettingsConfigDict(env_prefix="VERANDAH_TRAIN_", frozen=True, extra="forbid")

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
    epochs: int | None = Field(None, description="passes over the file; default: by its length")
    batch_size: int | None = Field(None, description="examples per step; default: by the file")
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
    wait: bool = Field(True, description="wait for the job's end")

    def hyperparameters(self) -> Hyperparameters:
        """The options that are set, by the API's names."""
        values = self.model_dump(exclude=_NOT_OF_THE_METHOD, exclude_none=True)
        if self.epochs is not None:
            values["n_epochs"] = values.pop("epochs")
        if self.targets is not None:
            by_name = len(self.targets) == 1 and self.targets[0] in TARGET_SETS
            values["targets"] = self.targets[0] if by_name else list(self.targets)
        return cast(Hyperparameters, values)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="JSONL: chat messages, or prompt and completion")
    add_fields(parser, TrainFields, "training", example="learning_rate")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    fields = read_fields(options, TrainFields)
    if not options.file.is_file():
        raise BadOption(f"{options.file} does not exist: name a JSONL file of training lines")
    name = fields.name or options.file.stem
    with connect(options) as client:
        uploaded = client.upload(options.file)
        job = client.train(
            uploaded.id,
            model=fields.go_on_from,
            suffix=name,
            seed=fields.seed,
            hyperparameters=fields.hyperparameters(),
        )
        if not fields.wait:
            print(job.id)
            return 0
        print(_watch(client, job, name).fine_tuned_model)
    return 0


def show_outcome(console: Console, job: Job) -> None:
    """Print losses and answers, before and after. Outside a terminal, events have shown them."""
    if not console.is_terminal:
        return
    result = job.judgement
    if result is not None and result.base_loss is not None and result.adapter_loss is not None:
        lines = "held-out lines" if result.held_out else "training lines"
        losses = f"base {result.base_loss:.3f}, adapter {result.adapter_loss:.3f}"
        console.print(Text(f"Loss on {lines} ({result.lines}): {losses}"))
    for sample in job.samples:
        console.print(Text(visible_lines(f"\n{sample.prompt}"), style="bold"))
        for source, text in (
            ("base", sample.base),
            ("adapter", sample.adapter),
            ("file", sample.expected),
        ):
            console.print(Text(visible_lines(f"  {source}: {text}")))


def _watch(client: Client, job: Job, name: str) -> Job:
    """Show a job's progress on the error stream, so that the output is the adapter's id alone."""
    console = Console(stderr=True)
    with TrainingBars(console) as bars:
        bars.add(name)
        for event in client.follow(job.id):
            bars.show(name, event)
        try:
            ended = client.wait(job.id)
        except JobFailed:
            bars.finish(name, "failed")
            show_outcome(console, client.job(job.id))
            raise
        bars.finish(name, f"done: {ended.fine_tuned_model}")
    show_outcome(console, ended)
    return ended
