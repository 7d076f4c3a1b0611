"""`verandah demo`: trains three adapters on a server of its own and compares them with the base."""

import argparse
import contextlib
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final, TypeVar

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from clients.python import Client, ClientError, Hyperparameters
from server.bases.short_names import PORCH, ShortName
from server.cli.arguments.options import add_settings, read_fields
from server.cli.display.output import one_line
from server.cli.display.progress import TrainingBars
from server.cli.fetch import fetch_with_bar
from server.config import BadOption, Settings
from server.control_characters import visible_lines
from server.errors import FetchFailed
from server.wiring.default_base import with_base
from server.wiring.process import command, environment, exit_on_sigterm, say
from server.wiring.start_checks import check_reach, check_settings

EXAMPLES = """examples:
  verandah demo                          uses a temporary home and removes it at the end
  verandah demo --home ./demo            keeps it for: verandah serve --home ./demo
  verandah demo --model porch            downloads nothing
  verandah demo --device cuda --model Qwen/Qwen3-0.6B
"""

add_options = add_settings

_EXAMPLES_FOLDER = Path(__file__).parents[2] / "examples"
TASK = _EXAMPLES_FOLDER / "intents.jsonl"
FILES = (_EXAMPLES_FOLDER / "pirate.jsonl", _EXAMPLES_FOLDER / "butler.jsonl", TASK)
HELD_OUT = _EXAMPLES_FOLDER / "intents_held_out.jsonl"
QUESTIONS = (  # none is in the files
    "How do I plant a tree?",
    "What makes a good friend?",
    "Play some jazz in the kitchen",
)
T = TypeVar("T")
Item = TypeVar("Item")

_VOICE: Final = 40  # tokens of an answer
_NAME: Final = 12
_AT_ONCE: Final = 64
_STOP_TIMEOUT_S = 30.0


class DemoFailed(ClientError):
    """The demo's server did not start."""


@dataclass(frozen=True)
class DemoAnswer:
    """The answer of one model."""

    model: str
    text: str


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    exit_on_sigterm(128 + signal.SIGTERM)
    console = Console()
    for path in (*FILES, HELD_OUT):
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
        settings = with_base(settings, say, partial(_bring, console))
        with _server(settings, console) as url, Client(url, settings.key) as client:
            base = client.models()[0]
            models = [base, *_train(client, console)]
            for question, answers in _ask(client, models):
                _show(console, question, answers)
            _score(console, client, base, models[1 + FILES.index(TASK)])
            _explain(console, client, models[1:], time.monotonic() - started)
    return 0


def _bring(console: Console, row: ShortName) -> None:
    try:
        fetch_with_bar(row, console)
    except FetchFailed as error:
        say(f"{error}. The demo goes on with {PORCH}, a toy that is always here")


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


def _ask(client: Client, models: Sequence[str]) -> list[tuple[str, list[DemoAnswer]]]:
    """Ask all models all questions at once: the server answers them in one batch."""

    def ask(pair: tuple[str, str]) -> DemoAnswer:
        question, model = pair
        return DemoAnswer(model, visible_lines(_answer(client, model, question, _VOICE)))

    answers = _together(ask, [(question, model) for question in QUESTIONS for model in models])
    rows = range(0, len(answers), len(models))
    return [
        (question, answers[row : row + len(models)])
        for question, row in zip(QUESTIONS, rows, strict=True)
    ]


def _answer(client: Client, model: str, question: str, tokens: int) -> str:
    messages = [{"role": "user", "content": question}]
    return client.answer(model, messages, temperature=0, max_tokens=tokens).strip()


def _score(console: Console, client: Client, base: str, adapter: str) -> None:
    """Print how many commands that nobody trained on the base and the task's adapter get right.

    The base is told the names that it may answer, in front of each command; the adapter knows them.
    """
    turns = [json.loads(line)["messages"] for line in HELD_OUT.read_text().splitlines()]
    commands = [(user["content"], assistant["content"]) for user, assistant in turns]
    names = sorted({name for _, name in commands})
    told = f"Which of these does the command ask for: {', '.join(names)}?\n\n"

    def right(item: tuple[str, str, str]) -> bool:
        model, command, name = item
        prompt = told + command if model == base else command
        said = _answer(client, model, prompt, _NAME).casefold()
        return [each for each in names if each in said] == [name]

    with console.status(f"asking {base} and {adapter} {len(commands)} held-out commands"):
        items = [(model, *pair) for model in (base, adapter) for pair in commands]
        scores = _together(right, items)
    console.print()
    console.print(Text(f"What do {len(commands)} spoken commands ask for? None is in a file."))
    for place, who in enumerate((f"{base}, which is told the {len(names)} names", adapter)):
        count = sum(scores[place * len(commands) : (place + 1) * len(commands)])
        share = count / len(commands)
        console.print(Text(f"  {who}: {count} right ({share:.0%})"), soft_wrap=True)


def _together(work: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
    """Do the work for all items at once; results in their order."""
    threads = ThreadPoolExecutor(min(len(items), _AT_ONCE))
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
            console.print(Text(f"  {answer.model}: {one_line(answer.text)}"), soft_wrap=True)
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
