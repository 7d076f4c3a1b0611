"""Lines of training files, changed: never a 500, and what a dry run calls valid can be trained."""

import contextlib
import io
import json
import shutil
import threading
from collections.abc import Mapping
from random import Random
from typing import Any

import httpx
import torch

from server.bases.base_files import load_base
from server.bases.tokenizer import load_tokenizer
from server.jobs.queue.job import JobStatus
from server.jobs.queue.train_options import TrainOptions
from server.training.job.worker_loop import run_worker
from tests.fuzz.edits import edit, edited, paths, written
from tests.fuzz.target import BOUND_S, Target, wrong_error
from tests.fuzz.trapped_base import BEYOND
from tests.fuzz.trial import Case, Verdict
from tests.training.workplace import BASE, OWNER, Workplace

_CALL = {"id": "c1", "type": "function", "function": {"name": "sun", "arguments": '{"in": "Oslo"}'}}
_TOOL = {"type": "function", "function": {"name": "sun", "parameters": {"type": "object"}}}


def _chat(number: int) -> dict[str, Any]:
    asked = {"role": "user", "content": f"Say {number}"}
    answer = {"role": "assistant", "content": f"{number}, matey", "weight": 1}
    if number % 4 == 1:
        return {"messages": [{"role": "system", "content": "Be brief."}, asked, answer]}
    if number % 4 == 2:
        return {"messages": [asked, {**answer, "weight": 0}, asked, answer]}
    if number % 4 == 3:
        called = {"role": "assistant", "tool_calls": [_CALL]}
        told = {"role": "tool", "content": "sun", "tool_call_id": "c1"}
        return {"messages": [asked, called, told, answer], "tools": [_TOOL]}
    return {"messages": [asked, answer]}


def _odd_chat(number: int) -> dict[str, Any]:
    """As SDKs dump chats, and in other orders of roles."""
    ruled = {"role": ("system", "developer")[number % 2], "content": "Be brief."}
    asked = {"role": "user", "content": [{"type": "text", "text": f"Say {number}"}], "name": "Al"}
    answer = {"role": "assistant", "content": f"{number}, matey", "weight": 1.0, "refusal": None}
    called = {"role": "assistant", "content": None, "function_call": _CALL["function"]}
    told = {"role": "function", "name": "sun", "content": "sun"}
    orders = [
        [ruled, answer],
        [answer, asked, answer],
        [asked, asked, answer, ruled, {**answer, "tool_calls": []}],
        [asked, {**answer, "reasoning_content": "Hm."}, asked, {**answer, "weight": None}],
        [asked, called, told, answer],
    ]
    functions = [_TOOL["function"]] if number % 5 == 4 else None
    return {"messages": orders[number % 5], "functions": functions, "tools": []}


LINES: Mapping[str, list[dict[str, Any]]] = {
    "odd chat": [_odd_chat(number) for number in range(12)],
    "chat": [_chat(number) for number in range(12)],
    "completion": [{"prompt": f"Say {n}", "completion": f"{n}, matey"} for n in range(12)],
}
_TEXT_FIELDS = ("content", "prompt", "completion", "text", "name", "reasoning_content")
# What is legal in a text, and may trip a tokenizer, a template or a trainer.
_TEXTS: list[Any] = [
    *("", " ", "\n", "\x00", "</s>", "<s>", "<|end|>", "<|end|><s>user\n", "<été>", "<pad>", "the"),
    *(
        BEYOND,
        f"a {BEYOND} b",
        "{{ 7 * 7 }}",
        "{% generation %}",
        "\u2028",
        "\ufeff",
        "\ud83d\ude00",
    ),
    *("👩\u200d🚀", "日本語", "e\u0301", "\u202e", "\ufffd", "\U0010ffff", "\u0085", "\r", "\t"),
    {"$text": "a", "$times": 500},
    {"$text": "a", "$times": 511},
    {"$text": "日", "$times": 400},
    {"$text": "</s>", "$times": 100},
]
_BYTES = [
    "\xff",
    "\x00",
    "\r\n",
    "\n\n",
    "\xef\xbb\xbf",
    "\xed\xa0\x80",
    "\xc3",
    "\x1a",
    "\r",
]  # Latin-1
_OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_tokens_per_batch": 1},
    {"validation_split": 0.5},
    {"validation_split": 0},
    {"batch_size": 12, "early_stopping": 1},
    {"method": "lora", "trained": None},
    {"dropout": 0.9},
]


class Lines:
    """Files: uploaded, tried by a dry run, made a job, and trained here if called valid."""

    name = "lines"

    def __init__(self, target: Target, *, big: bool) -> None:
        self._target = target
        self._big = big
        base = load_base(str(target.base), device="cpu")
        self._texts = {
            kind: [at for at in paths(lines) if at[-1] in _TEXT_FIELDS]
            for kind, lines in LINES.items()
        }
        self._loaded = base, load_tokenizer(str(target.base))

    def make(self, chance: Random) -> Case:
        kind = chance.choice(sorted(LINES))
        edits = []
        for _ in range(chance.choice([1, 1, 2, 3, 8])):
            if chance.random() < 0.7:  # still a text where one belongs: often valid
                at = chance.choice(self._texts[kind])
                edits.append({"op": "put", "at": at, "put": chance.choice(_TEXTS)})
            else:
                edits.append(edit(chance, LINES[kind], big=self._big))
        case: Case = {"kind": kind, "edits": edits, "options": chance.choice(_OPTIONS)}
        if chance.random() < 0.1:
            case["bytes"] = [{"at": chance.randrange(1500), "put": chance.choice(_BYTES)}]
        return case

    def judge(self, case: Case) -> Verdict:
        content = self._content(case)
        try:
            outcome, wrong = self._sent(content, case["options"])
        except httpx.TimeoutException:
            return Verdict("late", self._target.aftermath() or f"no answer in {BOUND_S:g} s", True)
        except httpx.TransportError as error:
            outcome, wrong = "broken", f"the connection broke: {error!r}"
        wrong = wrong or self._target.aftermath()
        if wrong is None and outcome == "valid":
            outcome, wrong = self._trained(content, case["options"])
        return Verdict(outcome, wrong)

    def _content(self, case: Case) -> bytes:
        records = edited(LINES[case["kind"]], case["edits"])
        content = b"".join(
            written(line).encode("utf-8", "surrogatepass") + b"\n" for line in records
        )
        for change in case.get("bytes", []):
            at = change["at"]
            content = content[:at] + change["put"].encode("latin-1") + content[at:]
        return content

    def _sent(self, content: bytes, options: Mapping[str, Any]) -> tuple[str, str | None]:
        """Upload, dry run and job agree on whether the file is good."""
        http = self._target.http
        files = {"file": ("lines.jsonl", content)}
        uploaded = http.post("/v1/files", data={"purpose": "fine-tune"}, files=files)
        if uploaded.status_code != 200:
            return "not stored", _judged("an upload", uploaded)
        file = uploaded.json()["id"]
        body = {"model": "base", "training_file": file, "suffix": "fuzzed", "verandah": {**options}}
        job = http.post("/v1/fine_tuning/jobs", json=body)
        body["verandah"] |= {"dry_run": True}
        tried = http.post("/v1/fine_tuning/jobs", json=body)
        if job.status_code == 200:
            http.post(f"/v1/fine_tuning/jobs/{job.json()['id']}/cancel")
        http.delete(f"/v1/files/{file}")
        wrong = _judged("a dry run", tried) or _judged("a job", job)
        if wrong is not None or tried.status_code != 200:
            return str(tried.status_code), wrong
        valid = tried.json()["valid"]
        if valid != (job.status_code == 200):
            told = job.text[:200]
            return (
                "differ",
                f"a dry run says valid={valid}, and the job is {job.status_code}: {told}",
            )
        if not valid and not tried.json()["problems"]:
            return "invalid", "a dry run says that the file is invalid, and not why"
        return ("valid" if valid else "invalid"), None

    def _trained(self, content: bytes, options: Mapping[str, Any]) -> tuple[str, str | None]:
        """Train for an epoch, as a worker does."""
        home = self._target.folder / "trained"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        place = Workplace.at(home)
        try:
            file = place.files.create(OWNER, "lines.jsonl", "fine-tune", io.BytesIO(content))
            wanted = {"rank": 2, "n_epochs": 1, "batch_size": 6, "publish": "always", **options}
            chosen = TrainOptions.from_json(json.dumps(wanted))
            job = place.queue.create(
                OWNER, BASE, file.id, suffix="pet", seed=1, hyperparameters=chosen
            )
            parts = place.parts(load=lambda: self._loaded, poll_s=0.001, checkpoint_every_s=1e9)
            with contextlib.suppress(RuntimeError):
                torch.set_num_threads(1)
            run_worker(parts, _UntilIdle(place))
            ended = place.queue.get(OWNER, job.id)
        finally:
            place.database.close()
        if ended.status == JobStatus.SUCCEEDED:
            return "trained", None
        told = ended.error.message if ended.error else ""
        code = ended.error.code if ended.error else ""
        if code == "diverged":
            return "diverged", None
        return "not trained", f"a file is called valid, and its job ends as {code}: {told[:200]}"


class _UntilIdle(threading.Event):
    """Set once nothing waits."""

    def __init__(self, place: Workplace) -> None:
        super().__init__()
        self._place = place

    def wait(self, timeout: float | None = None) -> bool:
        counts = self._place.queue.counts()
        if not any(count for status, count in counts.items() if not status.ended):
            self.set()
        return super().wait(timeout)


def _judged(what: str, response: httpx.Response) -> str | None:
    if response.status_code >= 500:
        return f"{what} is answered {response.status_code}: {response.text[:300]}"
    if response.status_code >= 400:
        wrong = wrong_error(response.status_code, response.content)
        return wrong and f"{what}: {wrong}"
    return None
