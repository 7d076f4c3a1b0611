"""Everything that may break, broken on purpose: the real worker, its real disk and database.

    python -m tests.faults.drill [SCENARIO ...] [--seed N] [--rounds N] [--minutes M]

A round accepts some jobs, lets workers suffer, lets a last one work in peace, and then holds the
home to what was promised (`books.check`). A seed says what happens, and at which change; the moment
at which a signal meets a process it cannot say. It is a program of its own because it forks, which
a process with other threads must not.
"""

import argparse
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from adapters_store.manifest import parse_adapter_id
from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from tests.faults.books import Broken, Kind
from tests.faults.rounds import Round, wait
from tests.faults.scenarios import SCENARIOS
from tests.training.workplace import load_tiny


def play(
    name: str,
    seed: int,
    loaded: tuple[BaseModel, ChatTokenizer],
    expected: dict[Kind, dict[str, Tensor]],
) -> Counter[str]:
    """One round. Raises what was found, with the home left as it is for whoever looks."""
    home = Path(tempfile.mkdtemp(prefix=f"{name}-{seed}-"))
    round_ = Round(home, random.Random(f"{name}/{seed}"), loaded)
    round_.supervised = round_.random.random() < 0.7
    try:
        SCENARIOS[name](round_)
        ends = round_.finish(expected)
    except Exception as error:
        round_.leave_nobody()
        raise Broken(f"{name}, seed {seed}, in {home}: {error}") from error
    if home.is_mount():
        subprocess.run(["umount", str(home)], check=True)
    shutil.rmtree(home)
    Path(f"{home}.log").unlink()
    return ends


def undisturbed(loaded: tuple[BaseModel, ChatTokenizer]) -> dict[Kind, dict[str, Tensor]]:
    """What the kinds of jobs learn when nothing happens to them."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        round_ = Round(home, random.Random(0), loaded)
        round_.accept()
        assert wait(round_.worker()) == 0
        with round_.place() as place:
            found: dict[Kind, dict[str, Tensor]] = {}
            for entry in round_.accepted:
                job = place.queue.get(entry.owner, entry.job)
                if job.fine_tuned_model:
                    ref = place.store.resolve(entry.owner, *parse_adapter_id(job.fine_tuned_model))
                    found[entry.kind] = dict(place.store.load(ref)[1])
            return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[[], *SCENARIOS])
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--rounds", type=int, default=1, help="of each scenario")
    parser.add_argument("--minutes", type=float, help="instead: as many rounds as go into them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_tiny()
    expected = undisturbed(loaded)
    began = time.monotonic()
    for number in range(10**9 if options.minutes else options.rounds):
        for name in options.scenario or SCENARIOS:
            started = time.monotonic()
            ends = play(name, options.seed + number, loaded, expected)
            seconds = time.monotonic() - started
            print(f"{name} {options.seed + number}: {dict(ends)}, {seconds:.1f} s", flush=True)
            if options.minutes and time.monotonic() - began > 60 * options.minutes:
                return


if __name__ == "__main__":
    main()
