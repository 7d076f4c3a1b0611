"""CPU time that the API takes for a request, a chunk and a token, over a simulated engine.

`python -m benchmarks.host.api_cost` runs everything that `verandah serve` runs but the engine.
The simulated engine is a process of its own and gives each stream one of `--bursts` tokens at once
every `--pace` seconds. Further processes send the requests. Figures are CPU time, system calls
included. Other work on the machine changes them only through the caches, by up to a quarter, so run
what is to be compared in turn. Of two bursts the larger makes fewer chunks: the difference is the
cost of a chunk, and the rest is the cost of a request, its tokens included.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import uvicorn

from benchmarks.support.load import Load, ask
from benchmarks.support.report import origin, table
from benchmarks.support.stack import settings_for
from benchmarks.support.stand_ins import run_as_engine
from server.api.app_services import Services
from server.app import create_app
from server.bases.base_files import outline_base
from server.bases.tokenizer import load_tokenizer
from server.cli.running.http_server import collect_garbage_rarely
from server.config import Settings
from server.engine.sequence import FinishReason
from server.interfaces import Inspections, Porting
from server.metrics import Metrics
from server.replicas.fleet import Fleet
from server.replicas.fleet_residency import FleetResidency
from server.replicas.replica import Replica
from server.scheduler.intake import Handle
from server.scheduler.request import Generation, Listener, LoopStats, TextDelta, TokenPiece
from server.wiring.building import Records, open_records
from server.wiring.front import Front
from server.wiring.front_services import wire


class SimulatedLoop:
    """Gives every stream `burst` tokens each `pace_s`, from a thread as the engine does."""

    alive = True
    max_context = max_answers = 4096

    def __init__(self, burst: int, pace_s: float) -> None:
        self._burst = burst
        self._pace_s = pace_s
        self._submitted: deque[tuple[Generation, Listener]] = deque()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, request: Generation, listener: Listener) -> Handle:
        self._submitted.append((request, listener))
        return Handle(())

    def cancel(self, handle: Handle) -> None:
        pass

    def stats(self) -> LoopStats:
        return LoopStats()

    def stop(self, drain_timeout_s: float) -> None:
        pass

    def _run(self) -> None:
        open_: list[list[object]] = []
        flushes: set[Callable[[], None]] = set()
        due = time.monotonic()
        while True:
            due = max(due + self._pace_s, time.monotonic())
            time.sleep(max(due - time.monotonic(), 0))
            while self._submitted:
                request, listener = self._submitted.popleft()
                open_.append([request.params.max_tokens, listener])
                flushes.add(listener.flush)
            open_ = [stream for stream in open_ if self._step(stream)]
            for flush in flushes:
                flush()

    def _step(self, stream: list[object]) -> bool:
        """Whether the stream continues."""
        left, listener = cast(int, stream[0]), cast(Listener, stream[1])
        count = min(self._burst, left)
        for place in range(count):
            last = place + 1 == left
            finish = FinishReason.LENGTH if last else None
            listener.hear(TextDelta(0, " word", (TokenPiece(5, " word"),), finish=finish))
        stream[0] = left - count
        return count < left


@contextmanager
def services_over(settings: Settings, burst: int, pace_s: float) -> Iterator[Services]:
    """The services of a server with a simulated engine."""
    module = "benchmarks.host.api_cost"
    command = [sys.executable, "-m", module, "--as-engine", f"{burst},{pace_s}"]
    fleet = Fleet([Replica(number, command, os.environ) for number in range(settings.replicas)])
    with open_records(settings) as records:
        fleet.start()
        try:
            yield _wired(settings, records, fleet)
        finally:
            fleet.stop(0)


def _wired(settings: Settings, records: Records, fleet: Fleet) -> Services:
    front = Front(
        base=replace(outline_base(settings.model), fingerprint=fleet.facts.fingerprint),
        tokenizer=load_tokenizer(settings.model),
        engine=fleet,
        residency=FleetResidency(fleet),
        inspections=cast(Inspections, None),  # type: ignore[arg-type]
        porting=cast(Porting, None),  # type: ignore[arg-type]
        stop=fleet.stop,
    )
    return wire(settings, records, front, Metrics("base"), None)


@contextmanager
def listening(services: Services) -> Iterator[int]:
    """The application on a free port, in a thread of this process."""
    config = uvicorn.Config(
        create_app(services), port=0, log_config=None, access_log=False, lifespan="off"
    )
    collect_garbage_rarely()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield int(server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    thread.join()


def measure(options: argparse.Namespace, chat: bool, burst: int) -> tuple[float, float]:
    """CPU milliseconds a request, and its chunks."""
    load = Load(
        options.streams,
        options.prompt_tokens,
        options.answer_tokens,
        256,
        stream=True,
        warm_up_s=options.warm_up,
        seconds=options.seconds,
        chat=chat,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(str(Path(folder) / "home"), max_waiting=4 * options.streams)
        with services_over(settings, burst, options.pace) as services, listening(services) as port:
            result, used = ask(port, load, 1)
    return used / result.answers * 1e3, result.events / result.answers - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--bursts", type=int, nargs=2, default=[3, 128])
    parser.add_argument("--pace", type=float, default=0.05, help="seconds between bursts")
    parser.add_argument("--warm-up", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--kinds", nargs="+", default=["completions", "chat"])
    parser.add_argument("--as-engine", help=argparse.SUPPRESS)
    parser.add_argument("--connect", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_engine:
        burst, _, pace = options.as_engine.partition(",")
        return run_as_engine(SimulatedLoop(int(burst), float(pace)), options.connect)
    rows: list[list[object]] = []
    for kind in options.kinds:
        (many, chunks), (few, least) = (measure(options, kind == "chat", b) for b in options.bursts)
        each = (many - few) / (chunks - least)
        rows.append([kind, few - least * each, each * 1e3, chunks])
        print(*rows[-1], file=sys.stderr)
    columns = ("", "ms a request", "us a chunk", "chunks a request")
    print(origin(), table(columns, rows), sep="\n\n")
    return None


if __name__ == "__main__":
    main()
