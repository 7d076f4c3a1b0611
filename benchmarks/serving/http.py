"""Tokens per second over HTTP and of the same engine without HTTP: the cost of HTTP.

`python -m benchmarks.serving.http` runs the engine in a process of its own, then `verandah serve`
with clients in further processes. Both are kept busy by as many streams; each stream asks again as
soon as it is answered. `--model 1b` and `8b` are random weights with an invented tokenizer.
"""

import argparse
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from benchmarks.support.base_shapes import SHAPES, random_model
from benchmarks.support.load import Load, LoadResult, ask
from benchmarks.support.report import origin, table
from benchmarks.support.stack import running_stack, settings_for
from server.bases.base_place import locate
from server.config import Settings
from server.engine.sequence import SamplingParams
from server.scheduler.loop import ServingLoop
from server.scheduler.request import CallbackListener, Generation, TextDelta
from server.wiring.process import command, environment

_SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2}


def model_folder(name: str, device: str, folder: Path) -> str:
    """The folder of `--model`: a known model's, or one of `SHAPES`, saved with random weights."""
    if name not in SHAPES:
        return name
    random_model(name, device).cpu().save_pretrained(folder)
    _tokenizer(int(SHAPES[name]["vocab_size"])).save_pretrained(folder)
    return str(folder)


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A byte-level vocabulary: every byte, then invented words of four letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = "abcdefghijklmnopqrst"
    words = (
        "Ġ" + a + b + c + d for a in letters for b in letters for c in letters for d in letters
    )
    spellings = [*_SPECIAL, *alphabet, *words][:size]
    vocab = {spelling: number for number, spelling in enumerate(spellings)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


class Direct:
    """Keeps a loop busy from its own thread, as the clients keep a server busy."""

    def __init__(self, loop: ServingLoop, load: Load) -> None:
        self._loop = loop
        self._load = load
        self._from = time.perf_counter() + load.warm_up_s
        self._until = self._from + load.seconds
        self.result = LoadResult()
        self._open = load.streams
        self.done = threading.Event()

    def start(self) -> None:
        for seed in range(self._load.streams):
            draw = random.Random(seed)
            self._ask(draw, draw.randint(1, self._load.answer_tokens))

    def _ask(self, draw: random.Random, length: int) -> None:
        params = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)
        prompt = tuple(self._load.prompt(draw))
        sent_at = time.perf_counter()
        listener = CallbackListener(partial(self._hear, draw, [sent_at, 0.0]))
        self._loop.submit(Generation("bench", "bench", prompt, params), listener)

    def _hear(self, draw: random.Random, times: list[float], delta: TextDelta) -> None:
        """On the engine's thread. `times`: of the request, and of the last token."""
        now = time.perf_counter()
        counts = self._from <= now < self._until
        if counts:
            self.result.events += 1
            seconds = self.result.gaps if times[1] else self.result.first
            seconds.append(now - (times[1] or times[0]))
        times[1] = now
        if delta.error is not None:
            self.result.failures.append(str(delta.error))
        if delta.finish is None:
            return
        self.result.answers += counts
        if now < self._until and not self.result.failures:
            self._ask(draw, self._load.answer_tokens)
            return
        self._open -= 1
        if not self._open:
            self.done.set()


def _run_direct(pipe: "Connection[LoadResult, object]", settings: Settings, load: Load) -> None:
    with running_stack(settings) as stack:
        direct = Direct(stack.loop, load)
        direct.start()
        direct.done.wait()
    pipe.send(direct.result)


def without_http(settings: Settings, load: Load) -> LoadResult:
    """The engine in a process of its own, so that its device memory is free again afterwards."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run_direct, args=(theirs, settings, load))
    process.start()
    theirs.close()  # else a process that dies would be waited for
    result: LoadResult = ours.recv()
    process.join()
    if result.failures:
        raise RuntimeError(f"{len(result.failures)} answers failed: {result.failures[0]}")
    return result


@contextmanager
def served(settings: Settings) -> Iterator[tuple[int, psutil.Process]]:
    """`verandah serve`: its port and its process."""
    process = subprocess.Popen(
        command("serve"), env=environment(settings), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        port = re.search(r":(\d+)$", line)
        if port is None:
            raise RuntimeError(f"the server did not start: {line!r}")
        yield int(port[1]), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.communicate()


def over_http(
    settings: Settings, loads: Sequence[Load], clients: int
) -> list[tuple[LoadResult, float]]:
    """The clients' results under each load of one server, and how many cores its API kept busy."""
    results = []
    with served(settings) as (port, process):
        for load in loads:
            result, used = ask(port, load, clients, lambda: sum(process.cpu_times()[:2]))
            results.append((result, used / load.seconds))
    return results


def _row(
    what: str, load: Load, result: LoadResult, rate: float, to: float, api: str
) -> list[object]:
    tokens = result.answers * load.answer_tokens
    gaps, first = sorted(result.gaps), sorted(result.first)
    return [
        what,
        rate,
        f"{rate / to:.3f}",
        f"{tokens / result.events:.2f}" if result.events else "whole",
        _ms(gaps, 0.5),
        _ms(gaps, 0.99),
        _ms(first, 0.5),
        _ms(first, 0.99),
        api,
    ]


def _ms(values: list[float], share: float) -> str:
    return f"{values[int(share * (len(values) - 1))] * 1e3:.1f}" if values else ""


COLUMNS = (
    "", "tokens/s", "over the engine's", "tokens a chunk", "gap p50 ms", "gap p99 ms",
    "first p50 ms", "first p99 ms", "API cores",
)  # fmt: skip


def measure(options: argparse.Namespace, folder: Path) -> list[list[object]]:
    model = model_folder(options.model, options.device, folder / "model")
    vocab_size = int(AutoConfig.from_pretrained(locate(model)).vocab_size)
    load = Load(
        options.streams,
        options.prompt_tokens,
        options.answer_tokens,
        vocab_size,
        True,
        options.warm_up,
        options.seconds,
    )
    settings = settings_for(
        str(folder / "home"),
        model=model,
        device=options.device,
        port=0,
        max_batch_rows=options.rows or options.streams,
        max_step_tokens=max(options.step_tokens, options.rows or options.streams),
        kv_memory_mb=options.kv_memory_mb,
        max_waiting=4 * options.streams,
        engine_process=options.engine_process,
    )
    whole = Load(**{**vars(load), "stream": False})
    alone = [without_http(settings, load) for _ in range(options.rounds)]
    own = statistics.median(_rate(result, load) for result in alone)
    rows = [_shown(_row("engine alone", load, alone[-1], own, own, ""))]
    for replicas in options.replicas:
        several = settings.model_copy(update={"replicas": replicas})
        kinds = {"streams": load} if options.streams_only else {"streams": load, "whole": whole}
        runs = [
            over_http(several, list(kinds.values()), options.clients) for _ in range(options.rounds)
        ]
        for which, (what, kind) in enumerate(kinds.items()):
            rate = statistics.median(_rate(each[which][0], kind) for each in runs)
            result, cores = runs[-1][which]
            label = f"HTTP, {what}, {replicas} replica{'s' * (replicas > 1)}"
            rows.append(_shown(_row(label, kind, result, rate, own, f"{cores:.2f}")))
    return rows


def _shown(row: list[object]) -> list[object]:
    """The same row, printed at once: a whole run takes minutes."""
    print(*row, sep="  ", file=sys.stderr, flush=True)
    return row


def _rate(result: LoadResult, load: Load) -> float:
    return result.answers * load.answer_tokens / load.seconds


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="porch", help="porch, 1b, 8b, a folder or a hub id")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=0, help="of a batch; 0: as many as streams")
    parser.add_argument("--step-tokens", type=int, default=1024)
    parser.add_argument("--kv-memory-mb", type=int, default=8192)
    parser.add_argument("--warm-up", type=float, default=6.0, help="seconds that do not count")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--clients", type=int, default=max(1, min(6, cores // 2)))
    parser.add_argument("--replicas", type=int, nargs="+", default=[1])
    parser.add_argument("--engine-process", default="auto")
    parser.add_argument("--streams-only", action="store_true", help="no answers in one piece")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    about = (
        f"{options.streams} streams, {options.prompt_tokens} tokens in, {options.answer_tokens} "
        f"out, {options.clients} client processes"
    )
    print(origin(), about, table(COLUMNS, rows), sep="\n\n")


if __name__ == "__main__":
    main()
    sys.exit(0)
