"""`verandah train`: upload a file, start a job, watch it end."""

import argparse
from pathlib import Path

from rich.console import Console

from clients.python import Client, Job, JobFailed
from server.cli.progress import TrainingBars
from server.cli.remote import add_server, connect

EXAMPLES = """examples:
  verandah train pirate.jsonl                      trains the adapter "pirate"
  verandah train notes.jsonl --name my-notes       names it
  verandah train notes.jsonl --epochs 5 --rank 64 --learning-rate 0.02
  verandah train notes.jsonl --no-wait             prints the job's id and leaves it running
"""

_HYPERPARAMETERS = {
    "epochs": "n_epochs",
    "rank": "rank",
    "learning_rate": "learning_rate",
    "batch_size": "batch_size",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="JSONL: chat messages, or prompt and completion")
    parser.add_argument("--name", help="the adapter's name; default: the file's")
    parser.add_argument("--epochs", type=int, help="times through the file")
    parser.add_argument("--rank", type=int, help="rank of the adapter")
    parser.add_argument("--learning-rate", type=float, help="peak learning rate")
    parser.add_argument("--batch-size", type=int, help="examples per step")
    parser.add_argument("--seed", type=int, help="seed of the adapter's random matrices")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the end")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    name = options.name or options.file.stem
    with connect(options) as client:
        uploaded = client.upload(options.file)
        job = client.train(
            uploaded.id, suffix=name, seed=options.seed, hyperparameters=_given(options)
        )
        if options.no_wait:
            print(job.id)
            return 0
        print(_watch(client, job, name).fine_tuned_model)
    return 0


def _given(options: argparse.Namespace) -> dict[str, object]:
    values = {field: getattr(options, option) for option, field in _HYPERPARAMETERS.items()}
    return {field: value for field, value in values.items() if value is not None}


def _watch(client: Client, job: Job, name: str) -> Job:
    """Show a job's progress on the error stream, so that the output is the adapter's id alone."""
    with TrainingBars(Console(stderr=True)) as bars:
        bars.add(name)
        for event in client.follow(job.id):
            bars.show(name, event)
        try:
            ended = client.wait(job.id)
        except JobFailed:
            bars.finish(name, "failed")
            raise
        bars.finish(name, f"done: {ended.fine_tuned_model}")
    return ended
