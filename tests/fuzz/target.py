"""A real `verandah serve` in a process of its own, which fuzzers send to, and what it must stand.

It is started again when a case has ended it or made it hang.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.fuzz.trapped_base import save_trapped_base
from tests.training.workplace import lines

ROOT = Path(__file__).parents[2]
BOUND_S = 10.0
"""Within which every request is answered, on a busy machine too."""

_HELLO = [{"role": "user", "content": "Say 1 please"}]
_CONTROL = {"model": "base", "messages": _HELLO, "max_tokens": 12, "temperature": 0}
_RAISED = re.compile(r"\w[\w.]*(Error|Exception)")
_JOBS = "/v1/fine_tuning/jobs"
_MOST_GROWTH_BYTES = 512 * 2**20


class Target:
    """The server's process, over a home that outlives it.

    `stock` names what is there to be asked for: a file, a job in the queue, an adapter.
    """

    def __init__(self, folder: Path, *options: str, **variables: str) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.base = folder / "base"
        self.stock: dict[str, str] = {}
        self._options = options
        self._variables = variables
        self._log = folder / "log"
        self._read_to = 0
        self._process: subprocess.Popen[str] | None = None
        self._memory = 0
        if not self.base.exists():
            save_trapped_base(self.base)

    def start(self) -> None:
        """Start, and learn what the control request is answered."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VERANDAH_")}
        environment |= {
            "OMP_NUM_THREADS": "1",
            "VERANDAH_HOME": str(self.home),
            "VERANDAH_MODEL": str(self.base),
            "VERANDAH_KV_MEMORY_MB": "8",
            "VERANDAH_ADAPTER_SLOTS": "8",
        }
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server", "serve", "--port", "0", *self._options],
                cwd=ROOT,
                env=environment | self._variables,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"http://(\S+):(\d+)", line)
        assert found, f"the server does not start: {line!r}\n{self.log}"
        self.url, self.address = found[0], (found[1], int(found[2]))
        self.http = httpx.Client(base_url=self.url, timeout=BOUND_S)
        self._memory = self.memory
        self._answer = self._control()
        self._read_to = len(self.log)

    def end(self) -> str | None:
        """End it by SIGTERM. Returns what was wrong with that."""
        if self._process is None or self._process.poll() is not None:
            return None
        family = psutil.Process(self.pid).children(recursive=True)
        self._process.terminate()
        status = self.ended(60)
        if status != 0:
            self._process.kill()
            self.ended(60)
            return f"a server that gets SIGTERM ends with {status}"
        _, alive = psutil.wait_procs(family, timeout=20)
        return f"a server's end leaves {len(alive)} processes" if alive else None

    def ended(self, timeout_s: float) -> int | None:
        """Wait for its end. Returns its status, or None if it goes on."""
        assert self._process is not None
        self.http.close()
        try:
            self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return self._process.returncode

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def memory(self) -> int:
        """Bytes of main memory that the server's process uses."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def aftermath(self) -> str | None:
        """What is wrong with the server after a case, if anything."""
        wrong = self._damage()
        if wrong is not None:
            assert self._process is not None
            self._process.kill()
            self._process.communicate()
            self.http.close()
            self.start()
        return wrong or self._logged()

    def _damage(self) -> str | None:
        """A fault after which it must start again."""
        assert self._process is not None
        if self._process.poll() is not None:
            return f"the server ended with status {self._process.returncode}"
        try:
            answer = self._control()
        except (httpx.HTTPError, AssertionError) as error:
            return f"afterwards the control request fails: {error!r}"
        if answer != self._answer:
            return f"afterwards the control request answers {answer!r}, not {self._answer!r}"
        if self.memory > self._memory + _MOST_GROWTH_BYTES:
            return f"it keeps {(self.memory - self._memory) >> 20} MiB more than at its start"
        return None

    def _logged(self) -> str | None:
        log = self.log
        news, self._read_to = log[self._read_to :], len(log)
        if "Traceback" not in news:
            return None
        last = [line for line in news.splitlines() if _RAISED.match(line)]
        return f"the log holds a traceback: {(last or ['?'])[-1][:200]}"

    def _control(self) -> str:
        response = self.http.post("/v1/chat/completions", json=_CONTROL)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    def restock(self) -> None:
        """See that there are a file, a job and an adapter to ask for."""
        for name in ("file", "spare"):  # the spare one may be deleted: no job needs it
            if not self._has(f"/v1/files/{self.stock.get(name)}"):
                sent = {"file": ("lines.jsonl", lines(12))}
                self.stock[name] = self._made(
                    "/v1/files", data={"purpose": "fine-tune"}, files=sent
                )
        for name, status in (("job", "queued"), ("paused", "paused")):
            job = self.stock.get(name)
            if not job or self.http.get(f"{_JOBS}/{job}").json().get("status") != status:
                body = {"model": "base", "training_file": self.stock["file"], "suffix": "later"}
                self.stock[name] = self._made(_JOBS, json=body | {"metadata": {"team": "a"}})
        self.http.post(f"{_JOBS}/{self.stock['paused']}/pause")
        events = self.http.get(f"{_JOBS}/{self.stock['job']}/events").json()
        self.stock["event"] = events["data"][-1]["id"]
        if not self._has("/v1/adapters/pet"):
            config, weights = lora()
            files = {
                "config": ("adapter_config.json", config),
                "weights": ("w.safetensors", weights),
            }
            self._made("/v1/adapters/import", data={"name": "pet"}, files=files)
        self.stock["adapter"] = "pet"

    def _has(self, path: str) -> bool:
        return self.http.get(path).status_code == 200

    def _made(self, path: str, **content: Any) -> str:
        response = self.http.post(path, **content)
        assert response.status_code == 200, response.text
        return str(response.json()["id"])


def lora() -> tuple[bytes, bytes]:
    """A small LoRA checkpoint of the trapped base: its config and its tensors."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    tensors: dict[str, tuple[int, int]] = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors |= {f"{name}A.weight": (2, 48), f"{name}B.weight": (48, 2)}
    header: dict[str, object] = {}
    size = 0
    for tensor, shape in tensors.items():
        end = size + 4 * shape[0] * shape[1]
        header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [size, end]}
        size = end
    text = json.dumps(header).encode()
    numbers = b"\x00\x00\x00\x3e\x00\x00\x80\xbd" * (size // 8)  # 1/8 and -1/16
    return json.dumps(config).encode(), len(text).to_bytes(8, "little") + text + numbers


def wrong_error(status: int, body: bytes) -> str | None:
    """What an error's body lacks of the OpenAI API's form."""
    if len(body) > 256 * 1024:  # a thousand wrong lines of a file
        return f"an error of {len(body)} bytes"
    try:
        error = json.loads(body)["error"]
        texts = [error[key] for key in ("message", "type", "code")]
        param = error["param"]
    except (ValueError, KeyError, TypeError):
        return f"a {status} that is not in the OpenAI API's form: {body[:200]!r}"
    if not all(isinstance(text, str) and text for text in texts):
        return f"a {status} with an empty field: {body[:200]!r}"
    if not (param is None or isinstance(param, str)):
        return f"a {status} whose param is {param!r}"
    return None
