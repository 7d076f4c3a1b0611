"""Shows a training job until its end. Knows no options."""

import sys

from rich.console import Console
from rich.text import Text

from clients.python import Client, ClientError, Job, JobFailed
from server.cli.display.progress import TrainingBars
from server.control_characters import visible_lines


def watch_job(client: Client, job_id: str, name: str, options: str) -> Job:
    """Show a job's progress on the error stream, until it has ended.

    Where that ends earlier, it tells how to come back; `options` are what the commands need besides
    the job's id.

    Raises:
        JobFailed: it ended without an adapter.
    """
    try:
        return _watch(client, job_id, name)
    except JobFailed:
        raise
    except (KeyboardInterrupt, ClientError):
        print(
            f"verandah: job {job_id} goes on at the server. Come back to it or end it:\n"
            f"  verandah jobs follow {job_id}{options}\n"
            f"  verandah jobs cancel {job_id}{options}",
            file=sys.stderr,
        )
        raise


def _watch(client: Client, job_id: str, name: str) -> Job:
    console = Console(stderr=True)
    with TrainingBars(console) as bars:
        bars.add(name)
        for event in client.follow(job_id):
            bars.show(name, event)
        try:
            ended = client.wait(job_id)
        except JobFailed:
            bars.finish(name, "failed")
            show_outcome(console, client.job(job_id))
            raise
        bars.finish(name, f"done: {ended.fine_tuned_model}")
    show_outcome(console, ended)
    return ended


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
