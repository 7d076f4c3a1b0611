"""`verandah demo`: trains two adapters on a server of its own and compares three answers."""

import argparse
import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from clients.python import Client, ClientError, Hyperparameters
from server.cli.arguments.options import add_settings, read_fields
from server.cli.display.progress import TrainingBars
from server.config import BadOption, Settings
from server.control_characters import visible_lines
from server.wiring.process import command, environment, exit_on_sigterm
from server.wiring.start_checks import check_reach, check_settings

EXAMPLES = """examples:
  verandah demo                          uses a temporary home and removes it at the end
  verandah demo --home ./demo            keeps it for: verandah serve --home ./demo
  verandah demo --device cuda --model Qwen/Qwen3-0.6B
"""

add_options = add_settings

_EXAMPLES_FOLDER = Path(__file__).parents[2] / "examples"
FILES = (_EXAMPLES_FOLDER / "pirate.jsonl", _EXAMPLES_FOLDER / "butler.jsonl")
QUESTIONS = (  # none is in the files; Porch was trained on the answers
    "How do I plant a tree?",
    "Tell me about the sun.",
    "How do I wash my hands?",
)
T = TypeVar("T")

_SAMPLING = {"temperature": 0, "max_tokens": 60}
_STOP_TIMEOUT_S = 30.0


class DemoFailed(ClientError):
    """The demo's server did not start."""


@dataclass(frozen=True)
class DemoAnswer:
    """The answer of one model."""

    model: str
    text: str
    seconds: float


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    exit_on_sigterm(128 + signal.SIGTERM)
    console = Console()
    for path in FILES:
        if not path.is_file():
            raise DemoFailed(
                f"the example file {path} is missing: run the demo from a full checkout"
            )
    asked = read_fields(options, Settings)
    if not asked.worker:
        raise BadOption("--no-worker: the demo trains adapters, so leave this option out")
    free = {} if "port" in asked.model_fields_set else {"port": 0}
    check_settings(asked)
    check_reach(asked)
    with _home(asked) as home:
        settings = asked.model_copy(update={"home": home, **free})
        with _server(settings, console) as url, Client(url, settings.key) as client:
            base = client.models()[0]
            models = [base, *_train(client, console)]
            for question in QUESTIONS:
                _show(console, question, _ask(client, models, question))
            _explain(console, client, models[1:], time.monotonic() - started)
    return 0


@contextlib.contextmanager
def _home(settings: Settings) -> Iterator[Path]:
    """The home in the settings, or a temporary one that is removed at the end."""
    if "home" in settings.model_fields_set:
        yield settings.home
        return
    with tempfile.TemporaryDirectory(prefix="verandah-demo-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _server(settings: Settings, console: Console) -> Iterator[str]:
    """`verandah serve` on the settings' port; yields its address. Its log is thrown away."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command("serve"),
            env=environment(settings),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            with console.status(f"starting a server of {settings.model}"):
                url = _address(process, log)
            console.print(Text(f"A server of {settings.model} runs at {url}."))
            yield url
        finally:
            process.terminate()
            try:
                process.communicate(timeout=_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def _address(process: subprocess.Popen[str], log: IO[str]) -> str:
    """Wait for the server's one line of output, which has its address."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("serving at "):
        process.wait()
        log.seek(0)
        reason = (log.read().strip().splitlines() or ["it said nothing"])[-1]
        raise DemoFailed(f"the server did not start: {reason}")
    return line.removeprefix("serving at ").strip()


def _train(client: Client, console: Console) -> list[str]:
    """Train an adapter from each file; returns their ids."""
    jobs = {}
    for path in FILES:
        uploaded = client.upload(path)
        only_the_result: Hyperparameters = {"checkpoints": 0}
        job = client.train(uploaded.id, suffix=path.stem, hyperparameters=only_the_result)
        jobs[path.stem] = job.id
    console.print(Text(f"Training {len(jobs)} adapters, one for each user's file:"))
    with TrainingBars(console) as bars:
        for name in jobs:
            bars.add(name)

        def watch(name: str) -> str:
            for event in client.follow(jobs[name]):
                bars.show(name, event)
            job = client.wait(jobs[name])
            bars.finish(name, f"trained on {job.trained_tokens} tokens")
            return str(job.fine_tuned_model)

        return _together(watch, list(jobs))


def _ask(client: Client, models: Sequence[str], question: str) -> list[DemoAnswer]:
    """Ask all models at once: the server answers them in one batch."""

    def ask(model: str) -> DemoAnswer:
        began = time.monotonic()
        text = client.answer(model, [{"role": "user", "content": question}], **_SAMPLING)
        return DemoAnswer(model, visible_lines(text.strip()), time.monotonic() - began)

    return _together(ask, models)


def _together(work: Callable[[str], T], items: Sequence[str]) -> list[T]:
    """Do the work for all items at once; results in their order."""
    threads = ThreadPoolExecutor(len(items))
    try:
        return list(threads.map(work, items))
    finally:
        # Without waiting: after Ctrl-C the threads end only when the server has stopped.
        threads.shutdown(wait=False, cancel_futures=True)


def _show(console: Console, question: str, answers: Sequence[DemoAnswer]) -> None:
    console.print()
    console.print(Text(question, style="bold"))
    if not console.is_terminal:
        for answer in answers:
            console.print(Text(f"  {answer.model}: {answer.text}"), soft_wrap=True)
        return
    width = max(console.width // len(answers) - 1, 20)
    panels = [Panel(Text(answer.text), title=Text(answer.model), width=width) for answer in answers]
    console.print(Columns(panels))


def _explain(console: Console, client: Client, adapters: Sequence[str], seconds: float) -> None:
    console.print()
    for name in adapters:
        adapter = client.adapter(name)
        size = (adapter.bytes or 0) / 1024
        console.print(
            Text(f"{name}: {adapter.method}, rank {adapter.rank}, {size:.0f} KiB on disk.")
        )
    console.print(Text(f"All in {seconds:.0f} s. Each question went to all models in one batch."))
