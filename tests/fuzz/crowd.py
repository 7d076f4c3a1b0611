"""Clients who use a server while its processes suffer, and remember what they were promised."""

import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any, Final

import httpx

from tests.fuzz.target import Target
from tests.training.workplace import lines

_JOBS: Final = "/v1/fine_tuning/jobs"
_OPTIONS: Final = {"n_epochs": 4, "batch_size": 4, "learning_rate": 0.02}
_HELLO: Final = {
    "model": "base",
    "messages": [{"role": "user", "content": "Say 1 please"}],
    "max_tokens": 24,
    "temperature": 0,
    "ignore_eos": True,
}


class Crowd:
    """Threads that upload, queue jobs, chat and export until they are stopped.

    An answer that does not come is nobody's fault while processes die. What was answered holds:
    `files` by id with their SHA-256, `jobs` by id with the names of their adapters.
    """

    def __init__(self, target: Target, chance: Random, *, most_jobs: int) -> None:
        self.files: dict[str, str] = {}
        self.jobs: dict[str, str] = {}
        self.wrong: list[str] = []
        self.answered = 0
        self._url = target.url
        self._chance = chance
        self._most_jobs = most_jobs
        self._chats: set[str] = set()
        self._stop = threading.Event()
        kinds = (self._train, self._chat, self._export)
        self._threads = [threading.Thread(target=self._repeat, args=(kind,)) for kind in kinds]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, use: Callable[[httpx.Client], None]) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as http:
            while not self._stop.is_set():
                try:
                    use(http)
                except httpx.HTTPError:
                    time.sleep(0.1)
                except Exception as error:
                    self.wrong.append(f"{use.__name__}: {error!r}")
                    return

    def _good(self, response: httpx.Response) -> bool:
        """Whether it was done. Refused for now is no fault; "internal_error" is."""
        if response.status_code == 200:
            self.answered += 1
            return True
        if response.status_code == 500 or response.status_code < 429:
            request = f"{response.request.method} {response.request.url.path}"
            self.wrong.append(
                f"{request} is answered {response.status_code}\n{response.text[:300]}"
            )
        time.sleep(0.1)
        return False

    def _train(self, http: httpx.Client) -> None:
        """Upload, and queue a job of it; another file is only kept."""
        count = len(self.files)
        content = lines(12 + self._chance.randrange(6))
        sent: dict[str, Any] = {"file": ("lines.jsonl", content)}
        response = http.post("/v1/files", data={"purpose": "fine-tune"}, files=sent)
        if not self._good(response):
            return
        file = response.json()["id"]
        self.files[file] = hashlib.sha256(content).hexdigest()
        if len(self.jobs) < self._most_jobs:
            name = f"pupil-{count}"
            options = {"rank": 4, "publish": "always", **_OPTIONS}
            body = {"model": "base", "training_file": file, "suffix": name, "verandah": options}
            job = http.post(_JOBS, json=body)
            if self._good(job):
                self.jobs[job.json()["id"]] = name
        self._stop.wait(0.5)

    def _chat(self, http: httpx.Client) -> None:
        response = http.post("/v1/chat/completions", json=_HELLO)
        if self._good(response):
            self._chats.add(response.json()["choices"][0]["message"]["content"])
            if len(self._chats) > 1:
                self.wrong.append(f"one question has different answers\n{self._chats}")
        self._stop.wait(0.05)

    def _export(self, http: httpx.Client) -> None:
        form = self._chance.choice(["peft", "merged"])
        response = http.get("/v1/adapters/pet/export", params={"format": form})
        if self._good(response):
            with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
                if archive.testzip() is not None:
                    self.wrong.append(f"a whole answer holds a broken {form} export")
        self._stop.wait(0.2)
