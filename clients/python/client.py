"""The client's methods: models, files, jobs and adapters. Knows nothing of how requests travel."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from .admin import Admin
from .analysis_result import Analysis
from .client_errors import ApiError, ConnectionFailed, JobFailed
from .folders import check_free, checkpoint_files, unpack
from .http_connection import HttpConnection, path_of
from .hyperparameters import Hyperparameters
from .shapes import Adapter, Checkpoint, Event, Job, Share, UploadedFile
from .slim import without_copies

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
_JOBS = "/v1/fine_tuning/jobs"
_ADAPTERS = "/v1/adapters"
_SHARES = "/v1/shares"

Message = Mapping[str, str]


class Client:
    """Talks to one server; a context manager.

    Every method raises ConnectionFailed when no server answers, and ApiError when it refuses.

        with Client(api_key="...") as client:
            job = client.train(client.upload(Path("pirate.jsonl")).id, suffix="pirate")
            adapter = client.wait(job.id).fine_tuned_model
            for piece in client.chat(adapter, [{"role": "user", "content": "Hello"}]):
                print(piece, end="")
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout: httpx.Timeout = DEFAULT_TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._server = HttpConnection(base_url, api_key, timeout, transport)
        self.admin = Admin(self._server)

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._server.base_url

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def ready(self) -> bool:
        """True when the server would answer a request now."""
        try:
            self._server.request("GET", "/ready")
        except (ApiError, ConnectionFailed):
            return False
        return True

    def models(self) -> list[str]:
        """The ids of the models: the base model's first, then the adapters'."""
        return [card["id"] for card in self._server.json("GET", "/v1/models")["data"]]

    def model(self, model_id: str) -> Mapping[str, Any]:
        """The card of one model: the base, an adapter or one version of it."""
        card: Mapping[str, Any] = self._server.json("GET", path_of("/v1/models", model_id))
        return card

    def chat(self, model: str, messages: Sequence[Message], **options: object) -> Iterator[str]:
        """Yield the answer's text as it comes. `options` are fields of a chat completion."""
        body = {"model": model, "messages": list(messages), "stream": True, **options}
        for chunk in self._server.documents("/v1/chat/completions", body):
            for choice in chunk["choices"]:
                yield choice["delta"].get("content") or ""

    def answer(self, model: str, messages: Sequence[Message], **options: object) -> str:
        """Return the whole answer's text. `options` are as in `chat`."""
        body = {"model": model, "messages": list(messages), **options}
        document = self._server.json("POST", "/v1/chat/completions", json=body)
        return str(document["choices"][0]["message"]["content"])

    def upload(self, path: Path, *, expires_after_s: int | None = None) -> UploadedFile:
        """Upload a training file. The server deletes it after so many seconds; None: never."""
        fields = {"purpose": "fine-tune"}
        if expires_after_s is not None:
            fields["expires_after[anchor]"] = "created_at"
            fields["expires_after[seconds]"] = str(expires_after_s)
        with path.open("rb") as file:
            files = {"file": (path.name, file, "application/jsonl")}
            return UploadedFile.of(self._server.json("POST", "/v1/files", data=fields, files=files))

    def delete_file(self, file_id: str) -> None:
        """Delete a file."""
        self._server.json("DELETE", path_of("/v1/files", file_id))

    def train(
        self,
        training_file: str,
        *,
        model: str | None = None,
        validation_file: str | None = None,
        suffix: str | None = None,
        seed: int | None = None,
        metadata: Mapping[str, str] | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> Job:
        """Create a job. It continues from the adapter `model`; None: it starts from the base.
        `suffix` becomes the adapter's name.

        client.train(file.id, hyperparameters={"method": "randlora", "rank": 16, "sparsity": 6})
        """
        body = {
            "model": model or self.models()[0],
            "training_file": training_file,
            "validation_file": validation_file,
            "suffix": suffix,
            "seed": seed,
            "metadata": None if metadata is None else dict(metadata),
            "verandah": dict(hyperparameters or {}),
        }
        return Job.of(self._server.json("POST", _JOBS, json=body))

    def dry_run(
        self,
        training_file: str,
        *,
        model: str | None = None,
        validation_file: str | None = None,
        suffix: str | None = None,
        seed: int | None = None,
        metadata: Mapping[str, str] | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> Mapping[str, Any]:
        """The estimate of the job that `train` would create (`appraisal`), or the wrong lines of
        its files (`problems`). Whatever else is wrong is the error that `train` would raise."""
        body = {
            "model": model or self.models()[0],
            "training_file": training_file,
            "validation_file": validation_file,
            "suffix": suffix,
            "seed": seed,
            "metadata": None if metadata is None else dict(metadata),
            "verandah": {**(hyperparameters or {}), "dry_run": True},
        }
        document: Mapping[str, Any] = self._server.json("POST", _JOBS, json=body)
        return document

    def jobs(
        self, *, status: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> Iterator[Job]:
        """The jobs of that `status` and with all pairs of `metadata`, the newest first."""
        query = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        return map(
            Job.of, self._server.pages(_JOBS, query | ({"status": status} if status else {}))
        )

    def job(self, job_id: str) -> Job:
        """The state of a job."""
        return Job.of(self._server.json("GET", path_of(_JOBS, job_id)))

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop."""
        return Job.of(self._server.json("POST", path_of(_JOBS, job_id, "cancel")))

    def pause(self, job_id: str) -> Job:
        """Pause a job; its worker saves it first."""
        return Job.of(self._server.json("POST", path_of(_JOBS, job_id, "pause")))

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again; it continues where it stopped."""
        return Job.of(self._server.json("POST", path_of(_JOBS, job_id, "resume")))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """The versions that a job published, oldest first."""
        pages = self._server.pages(path_of(_JOBS, job_id, "checkpoints"))
        return [Checkpoint.of(raw) for raw in pages][::-1]

    def content(self, file_id: str) -> bytes:
        """A file's bytes. A job's `result_files` are CSV with the figures of every step."""
        return self._server.request("GET", path_of("/v1/files", file_id, "content")).content

    def events(self, job_id: str) -> list[Event]:
        """All events of a job, oldest first."""
        return [Event.of(raw) for raw in self._server.pages(path_of(_JOBS, job_id, "events"))][::-1]

    def follow(self, job_id: str) -> Iterator[Event]:
        """Yield a job's events, oldest first, as they happen, until it has ended.

        They end early if the server stops; `wait` waits for the job all the same.
        """
        path = path_of(_JOBS, job_id, "events")
        return map(Event.of, self._server.documents(f"{path}?stream=true"))

    def wait(self, job_id: str, *, poll_s: float = 1.0) -> Job:
        """Wait until a job has ended.

        Raises:
            JobFailed: it ended without an adapter; the message says why.
        """
        while not (job := self.job(job_id)).ended:
            time.sleep(poll_s)
        if job.fine_tuned_model is None:
            reason = job.error["message"] if job.error else job.status
            raise JobFailed(f"job {job.id} {job.status}: {reason}")
        return job

    def adapters(self) -> Iterator[Adapter]:
        """Every adapter, by name, fetched page by page."""
        return map(Adapter.of, self._server.pages(_ADAPTERS))

    def adapter(self, adapter_id: str) -> Adapter:
        """One adapter: NAME, or NAME@VERSION."""
        return Adapter.of(self._server.json("GET", path_of(_ADAPTERS, adapter_id)))

    def analysis(
        self,
        adapter_id: str,
        compare: str | None = None,
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Analysis:
        """What an adapter changes in its base, and how similar the changes of `compare` are.

        While the server works, `on_progress` gets the number of linears done, and of all.
        """
        query = {"stream": "true"} | ({} if compare is None else {"compare": compare})
        path = f"{path_of(_ADAPTERS, adapter_id, 'analysis')}?{httpx.QueryParams(query)}"
        for document in self._server.documents(path):
            if document["object"] == "adapter.analysis":
                return Analysis.of(document)
            on_progress(document["done"], document["total"])
        raise ConnectionFailed(f"the server at {self.base_url} stopped before the analysis ended")

    def import_adapter(
        self,
        folder: Path,
        name: str,
        *,
        torch_era: str = "",
        half_dtype: str = "",
        base_dtype: str = "float32",
    ) -> Adapter:
        """Publish the PEFT checkpoint in `folder` as the next version of the adapter `name`.

        `torch_era` ("2.11" or "2.12"), `half_dtype` and `base_dtype` matter if the checkpoint was
        saved without its random matrices: see docs/peft.md. Copies of matrices are not sent.
        Raises BadFolder.
        """
        config, weights = checkpoint_files(folder)
        training = {"torch_era": torch_era, "half_dtype": half_dtype, "base_dtype": base_dtype}
        fields = {"name": name, **training}
        with config.open("rb") as config_file, without_copies(weights) as weights_file:
            files = {
                "config": (config.name, config_file, "application/json"),
                "weights": (weights.name, weights_file, "application/octet-stream"),
            }
            document = self._server.json("POST", f"{_ADAPTERS}/import", data=fields, files=files)
        return Adapter.of(document)

    def export_adapter(self, adapter_id: str, out: Path, form: str = "peft") -> list[Path]:
        """Write an adapter's files into the new folder `out`; `form`: peft, peft-lora or merged.

        Raises BadFolder where `out` exists and is not empty.
        """
        check_free(out)
        path = path_of(_ADAPTERS, adapter_id, "export")
        with self._server.stream(f"{path}?format={form}") as response:
            return unpack(response.iter_bytes(), out)

    def pin(self, adapter_id: str) -> Adapter:
        """Keep an adapter resident."""
        return Adapter.of(self._server.json("POST", path_of(_ADAPTERS, adapter_id, "pin")))

    def unpin(self, adapter_id: str) -> Adapter:
        """Allow an adapter to be evicted again."""
        return Adapter.of(self._server.json("POST", path_of(_ADAPTERS, adapter_id, "unpin")))

    def shares(self, adapter: str | None = None, *, received: bool = False) -> list[Share]:
        """The shares that you give, of one adapter or all; or those that you receive."""
        query = {"received": "true"} if received else {}
        query |= {} if adapter is None else {"adapter": adapter}
        return [Share.of(one) for one in self._server.pages(_SHARES, query)]

    def share(self, adapter: str, whom: str, to: str = "use") -> Share:
        """Let another owner, or "all", `use` your adapter or also `copy` it."""
        body = {"adapter": adapter, "with": whom, "to": to}
        return Share.of(self._server.json("POST", _SHARES, json=body))

    def end_share(self, share_id: str) -> None:
        """End a share that you give."""
        self._server.json("DELETE", path_of(_SHARES, share_id))

    def copy(self, adapter_id: str, name: str) -> Adapter:
        """Publish an adapter, also one that is shared to copy, as the next version of `name`."""
        path = path_of(_ADAPTERS, adapter_id, "copy")
        return Adapter.of(self._server.json("POST", path, json={"name": name}))

    def delete(self, adapter_id: str) -> None:
        """Delete an adapter (NAME), or one version of it (NAME@VERSION)."""
        self._server.json("DELETE", path_of(_ADAPTERS, adapter_id))
