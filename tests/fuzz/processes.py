"""Stops and kills of the server, its engine and its worker, while clients use them.

What was answered must hold: every accepted file is there, byte for byte; every accepted job
succeeds, and ends and publishes once; what hangs is replaced; and a server's end leaves nothing.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil

from tests.api.running import eventually
from tests.faults.books import ENDS
from tests.fuzz.crowd import Crowd
from tests.fuzz.target import Target
from tests.fuzz.trial import Case, Verdict

_REPLACED_S = 40.0  # 30 to notice that a process hangs, and some to end it on a busy machine
_WHOLE_S = 120.0
_VARIABLES = {"VERANDAH_CHECKPOINT_EVERY_S": "1", "VERANDAH_TRAINING_LATENCY": "inf"}
_LEFT = ("porting", "files/.uploads", "adapters/.staging", "training")


class Processes:
    """Rounds: each has a home and a server of its own.

    `brief`: one process is killed, once, and only the engine has a process of its own. So a round
    is short enough for every run of the tests.
    """

    name = "processes"

    def __init__(self, folder: Path, device: str, *, brief: bool = False) -> None:
        self._folder = folder
        self._brief = brief
        in_thread = brief or device == "cuda"
        self._who = ("server", "engine") if in_thread else ("server", "engine", "worker")
        worker = ("--worker-process", "no" if in_thread else "yes")
        self._options = ("--engine-process", "yes", *worker, "--device", device)

    def make(self, chance: Random) -> Case:
        if self._brief:
            return {
                "seed": chance.randrange(1000),
                "jobs": 1,
                "acts": [_act("engine", "KILL", 1.0)],
            }
        acts = []
        for _ in range(chance.choice([1, 2, 3])):
            who = chance.choice(self._who)
            how = chance.choice(["KILL", "KILL", "TERM", "STOP", "STOP"])
            for_s = None
            if how == "STOP":
                for_s = chance.choice([1.0, 6.0] if who == "server" else [1.0, 6.0, 35.0, None])
            acts.append(_act(who, how, round(chance.uniform(0.1, 8.0), 1), for_s))
        return {"seed": chance.randrange(1000), "jobs": 4, "acts": acts}

    def judge(self, case: Case) -> Verdict:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        options = (*self._options, "--port", str(_free_port()))
        target = Target(self._folder, *options, **_VARIABLES)
        target.start()
        round_ = _Round(target, case)
        try:
            wrong = round_.play()
        finally:
            left = target.end()
        told = f"{len(round_.crowd.jobs)} jobs of {len(case['acts'])} acts"
        return Verdict(told, wrong or left or self._leftovers())

    def _leftovers(self) -> str | None:
        for name in _LEFT:
            folder = self._folder / "home" / name
            found = sorted(path.name for path in folder.glob("*") if path.suffix != ".lock")
            if found:
                return f"{name} keeps {len(found)} entries when the server has ended\n{found[:5]}"
        return None


def _act(who: str, how: str, after_s: float, for_s: float | None = None) -> dict[str, Any]:
    return {"at": who, "op": how, "after_s": after_s, "for_s": for_s}


class _Round:
    def __init__(self, target: Target, case: Case) -> None:
        self._target = target
        self._acts = case["acts"]
        self._wrong: list[str] = []
        target.restock()
        target.http.post(f"/v1/fine_tuning/jobs/{target.stock['job']}/cancel")
        self.crowd = Crowd(target, Random(case["seed"]), most_jobs=case["jobs"])

    def play(self) -> str | None:
        """Returns the first thing that was wrong."""
        self.crowd.start()
        try:
            for act in self._acts:
                time.sleep(act["after_s"])
                self._suffer(act)
            time.sleep(1)
            eventually(lambda: len(self.crowd.jobs) > 0 or bool(self.crowd.wrong), 20)
        finally:
            self.crowd.stop()
        wrong = [*self.crowd.wrong, *self._wrong]
        if not wrong and not eventually(self._at_peace, _WHOLE_S):
            wrong.append(f"after {_WHOLE_S:g} s jobs have not ended, or it is not ready")
        return next(iter(wrong), None) or self._unkept()

    def _suffer(self, act: dict[str, Any]) -> None:
        who, how = act["at"], signal.Signals[f"SIG{act['op']}"]
        pid = self._target.pid if who == "server" else self._child(who)
        if pid is None:
            return  # it is just being started again
        os.kill(pid, how)
        if how == signal.SIGSTOP:
            self._hang(who, pid, act["for_s"])
        elif who == "server":
            status = self._target.ended(60)
            wanted = -how if how == signal.SIGKILL else 0
            if status != wanted:
                self._wrong.append(f"a server that gets {how.name} ends with {status}")
            self._target.start()

    def _hang(self, who: str, pid: int, for_s: float | None) -> None:
        """It hangs: for some time, or until it is replaced."""
        if for_s is not None:
            time.sleep(for_s)
        elif not eventually(lambda: self._child(who) not in (pid, None), _REPLACED_S):
            self._wrong.append(f"the {who} hangs for {_REPLACED_S:g} s and is not replaced")
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)

    def _child(self, who: str) -> int | None:
        """The process id of the engine or the worker."""
        for child in psutil.Process(self._target.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                if who in child.cmdline():
                    return int(child.pid)
        return None

    def _at_peace(self) -> bool:
        try:
            ready = self._target.http.get("/ready").status_code == 200
            return ready and all(self._job(job)["finished_at"] for job in self.crowd.jobs)
        except httpx.HTTPError:
            return False

    def _job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self._get(f"/v1/fine_tuning/jobs/{job}").json()
        return found

    def _get(self, path: str) -> httpx.Response:
        return self._target.http.get(path).raise_for_status()

    def _unkept(self) -> str | None:
        """A promise that was not kept."""
        for file, sha256 in self.crowd.files.items():
            response = self._target.http.get(f"/v1/files/{file}/content")
            if response.status_code != 200:
                return f"an accepted file is answered {response.status_code}"
            if hashlib.sha256(response.content).hexdigest() != sha256:
                return f"an accepted file of {len(response.content)} bytes is not what was sent"
        for job, name in self.crowd.jobs.items():
            if (wrong := self._unkept_job(self._job(job), name)) is not None:
                return wrong
        return self._target.aftermath()

    def _unkept_job(self, job: dict[str, Any], name: str) -> str | None:
        if job["status"] != "succeeded":
            return f"an accepted job is {job['status']}\n{job['error']}"
        events = self._get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100").json()["data"]
        ends = Counter(event["message"] for event in events if event["message"].startswith(ENDS))
        if ends.total() != 1:
            return f"an accepted job ended {ends.total()} times\n{ends}"
        adapter = self._get(f"/v1/adapters/{name}").json()
        if [job["fine_tuned_model"]] != [f"{name}@{version}" for version in adapter["versions"]]:
            result = job["fine_tuned_model"]
            return (
                f"a job published other versions than its result\n{adapter['versions']}, {result}"
            )
        told = self._get(f"/v1/fine_tuning/jobs/{job['id']}/checkpoints").json()["data"]
        if len(told) != len(adapter["checkpoints"]) + 1:  # the result is told of as well
            return f"a job tells of {len(told)} versions\n{adapter['checkpoints']} and its result"
        return None


def _free_port() -> int:
    """A port that a server may listen on, again after it was killed."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
