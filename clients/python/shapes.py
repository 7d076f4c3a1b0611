"""The server's documents as frozen records; `raw` has all their fields. Knows no HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

_ENDED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class UploadedFile:
    """A file on the server."""

    id: str
    filename: str
    bytes: int


@dataclass(frozen=True)
class Judgement:
    """Losses on the same lines: of the base, of the adapter at the start, and of the new one.
    `verdict` is better, worse or diverged; None before the end. See docs/training.md."""

    verdict: str | None
    lines: int
    held_out: bool
    base_loss: float | None
    start_loss: float | None
    adapter_loss: float | None


@dataclass(frozen=True)
class Sample:
    """A question from a job's file, the file's answer to it, the base's and the adapter's."""

    prompt: str
    expected: str
    base: str
    adapter: str


@dataclass(frozen=True)
class Job:
    """A training job. `fine_tuned_model` is the adapter's id once it has succeeded."""

    id: str
    status: str
    model: str
    fine_tuned_model: str | None
    trained_tokens: int | None
    result_files: tuple[str, ...]
    error: Mapping[str, Any] | None
    judgement: Judgement | None
    samples: tuple[Sample, ...]
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def ended(self) -> bool:
        return self.status in _ENDED


@dataclass(frozen=True)
class Checkpoint:
    """A version that a job published, during training or at its end. Its id is `model`."""

    id: str
    model: str
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Event:
    """An event of a job. `data` has the figures of an event of type `metrics`."""

    id: str
    created_at: int
    level: str
    message: str
    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Adapter:
    """An adapter. `residency` is its place: resident, host, loading or stored."""

    id: str
    version: int
    versions: tuple[int, ...]
    residency: str
    pinned: bool
    method: str | None
    rank: int | None
    bytes: int | None
    created_at: int | None
    error: str | None
    raw: Mapping[str, Any] = field(repr=False)


def read_file(raw: Mapping[str, Any]) -> UploadedFile:
    return UploadedFile(raw["id"], raw["filename"], raw["bytes"])


def read_job(raw: Mapping[str, Any]) -> Job:
    return Job(
        id=raw["id"],
        status=raw["status"],
        model=raw["model"],
        fine_tuned_model=raw["fine_tuned_model"],
        trained_tokens=raw["trained_tokens"],
        result_files=tuple(raw["result_files"]),
        error=raw["error"],
        judgement=_judgement(raw["verandah"].get("judgement")),
        samples=tuple(Sample(**sample) for sample in raw["verandah"].get("samples") or ()),
        raw=raw,
    )


def _judgement(raw: Mapping[str, Any] | None) -> Judgement | None:
    names = [each.name for each in fields(Judgement)]
    return None if raw is None else Judgement(**{name: raw[name] for name in names})


def read_checkpoint(raw: Mapping[str, Any]) -> Checkpoint:
    model, step = raw["fine_tuned_model_checkpoint"], raw["step_number"]
    return Checkpoint(raw["id"], model, step, raw["metrics"])


def read_event(raw: Mapping[str, Any]) -> Event:
    return Event(
        id=raw["id"],
        created_at=raw["created_at"],
        level=raw["level"],
        message=raw["message"],
        type=raw.get("type") or "message",
        data=raw.get("data") or {},
    )


def read_adapter(raw: Mapping[str, Any]) -> Adapter:
    return Adapter(
        id=raw["id"],
        version=raw["version"],
        versions=tuple(raw["versions"]),
        residency=raw["residency"],
        pinned=raw["pinned"],
        method=raw.get("method"),
        rank=raw.get("rank"),
        bytes=raw.get("bytes"),
        created_at=raw.get("created_at"),
        error=raw.get("error"),
        raw=raw,
    )
