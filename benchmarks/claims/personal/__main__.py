"""Personal use as it is: twenty users upload 30 to 300 lines and leave all options to the server.

    files --data DIR --users FILE       what they upload, once
    run --base BASE --users FILE --home DIR --results FILE [--minutes 5]
    report --results FILE

`run` starts `verandah serve`, uploads, trains through its queue and worker, and asks base and
adapters over HTTP. Then it ends the server and measures the losses on fresh lines of each user.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.claims.personal.judged import SHOTS, Judge
from benchmarks.claims.personal.users import User, chat, load, save, users
from benchmarks.claims.runs import records
from benchmarks.support.report import origin, table
from clients.python.client import Client

EXAMPLES = Path(__file__).parents[3] / "examples"
_AT_ONCE = 16  # questions over HTTP


@contextmanager
def serving(base: str, home: Path, log: Path) -> Iterator[str]:
    """The address of a server of its own, which ends with the block."""
    command = [sys.executable, "-m", "server", "serve", "--model", base, "--home", str(home)]
    with log.open("w") as errors:
        server = subprocess.Popen(
            [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+", server.stdout.readline())
            if found is None:
                raise RuntimeError(f"the server did not start; {log} says why")
            yield found[0]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def train(client: Client, all_users: Sequence[User], until: float) -> dict[str, dict[str, Any]]:
    """Upload all files and start all jobs at once; what became of each by its user's name."""
    jobs = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, user in enumerate(all_users):
            file = Path(folder) / f"{number}.jsonl"
            lines = (json.dumps({"messages": chat([pair])}) for pair in user.lines)
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            jobs[user.name] = client.train(client.upload(file).id, suffix=f"user-{number}").id
    while True:
        found = {name: client.job(job) for name, job in jobs.items()}
        if all(job.ended for job in found.values()) or time.monotonic() > until:
            break
        time.sleep(0.5)
    return {
        name: {
            "status": job.status,
            "adapter": job.fine_tuned_model,
            "error": None if job.error is None else job.error.get("code"),
            "seconds": (job.raw.get("finished_at") or time.time()) - job.raw["created_at"],
            "judgement": job.raw["verandah"].get("judgement"),
        }
        for name, job in found.items()
    }


def right(address: str, user: User, models: dict[str, tuple[str, int]]) -> dict[str, float]:
    """Percent of the fresh questions that each of `models` (and so many lines shown) answers to
    the letter."""
    questions = [(*each, pair) for each in models.values() for pair in user.fresh]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        hits = list(threads.map(partial(_hit, address, user), questions))
    count = len(user.fresh)
    parts = [hits[start : start + count] for start in range(0, len(hits), count)]
    return {name: 100 * sum(part) / count for name, part in zip(models, parts, strict=True)}


def _hit(address: str, user: User, question: tuple[str, int, tuple[str, str]]) -> bool:
    model, shots, (asked, answer) = question
    said_before = chat(user.lines[:shots])
    before = [{k: str(v) for k, v in one.items() if k != "weight"} for one in said_before]
    with Client(address) as client:
        said = client.answer(
            model, [*before, {"role": "user", "content": asked}], temperature=0, max_tokens=48
        )
    return said.strip().rstrip(".").lower() == answer.strip().rstrip(".").lower()


def do_files(options: argparse.Namespace) -> None:
    save(users(options.data, EXAMPLES), options.users)


def do_run(options: argparse.Namespace) -> None:
    print(origin(), flush=True)
    start = time.monotonic()
    until = start + options.minutes * 60
    all_users = load(options.users)[: options.first]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options.home.mkdir(parents=True, exist_ok=True)
    accuracy: dict[str, dict[str, float]] = {}
    with serving(options.base, options.home, options.home / "serve.log") as address:
        with Client(address) as client:
            while not client.ready() and time.monotonic() < until:
                time.sleep(0.2)
            print(f"{time.monotonic() - start:5.1f} s  the server is ready", flush=True)
            base = client.models()[0]
            jobs = train(client, all_users, until)
        states = [job["status"] for job in jobs.values()]
        counts = {state: states.count(state) for state in sorted(set(states))}
        print(f"{time.monotonic() - start:5.1f} s  jobs: {counts}", flush=True)
        for user in all_users:
            models = {"base": (base, 0), "shots": (base, SHOTS)}
            if jobs[user.name]["adapter"]:
                models["adapter"] = (jobs[user.name]["adapter"], 0)
            if user.exact and time.monotonic() < until:
                accuracy[user.name] = right(address, user, models)
        print(f"{time.monotonic() - start:5.1f} s  asked", flush=True)
    judge = Judge(options.base, options.home / "adapters", device)
    with options.results.open("a") as results:
        for user in all_users:
            job = jobs[user.name]
            record = {
                "user": user.name,
                "kind": user.kind,
                "lines": len(user.lines),
                "fresh": len(user.fresh),
                **job,
                "losses": judge.losses(user, job["adapter"]),
                "accuracy": accuracy.get(user.name),
            }
            print(json.dumps(record), file=results, flush=True)
            print(user.name, job["status"], record["losses"], record["accuracy"], flush=True)
    print(f"{time.monotonic() - start:5.1f} s  done", flush=True)


def do_report(options: argparse.Namespace) -> None:
    found = list(records([options.results]))
    rows = []
    for one in found:
        losses, hits = one["losses"], one["accuracy"] or {}
        cells = [f"{losses[name]:.2f}" if name in losses else "" for name in NAMES]
        shares = [f"{hits[name]:.0f}" if name in hits else "" for name in NAMES]
        outcome = "published" if one["adapter"] else one["error"] or one["status"]
        rows.append([one["user"], one["lines"], *cells, *shares, outcome])
    columns = ["user", "lines", *(f"loss, {name}" for name in NAMES)]
    print(table([*columns, *(f"%, {name}" for name in NAMES), "gate"], rows))
    losses = [one["losses"] for one in found if one["status"] in ("succeeded", "failed")]
    print(f"{len(losses)} of {len(found)} jobs ended in time; the rest count as nothing below")
    for name in ("base", "shots") if losses else ():
        better = [one for one in losses if one.get("adapter", one["base"]) < one[name]]
        gains = [one[name] - one.get("adapter", one["base"]) for one in losses]
        print(f"better than {name}: {len(better)} of {len(losses)}", end="; ")
        print(f"nats gained, median: {median(gains):.2f}, worst: {min(gains):.2f}")


NAMES = ("base", "shots", "adapter")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.claims.personal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True)
    one = commands.add_parser("files")
    one.set_defaults(do=do_files)
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--users", type=Path, required=True)
    one = commands.add_parser("run")
    one.set_defaults(do=do_run)
    one.add_argument("--base", required=True)
    for name in ("users", "home", "results"):
        one.add_argument(f"--{name}", type=Path, required=True)
    one.add_argument("--minutes", type=float, default=60.0)
    one.add_argument("--first", type=int, help="so many users only, to try it")
    one = commands.add_parser("report")
    one.set_defaults(do=do_report)
    one.add_argument("--results", type=Path, required=True)
    return top


def main() -> None:
    options = parser().parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
