"""The server's documents as frozen records; `raw` has all their fields. Knows no HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from .record import Record

_ENDED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class UploadedFile(Record):
    """A file on the server."""

    id: str
    filename: str
    bytes: int


@dataclass(frozen=True)
class Judgement(Record):
    """Losses on the same lines: of the base, of the adapter at the start, and of the new one.
    `verdict` is better, worse or diverged; None before the end. See docs/training.md."""

    verdict: str | None
    lines: int
    held_out: bool
    base_loss: float | None
    start_loss: float | None
    adapter_loss: float | None


@dataclass(frozen=True)
class Sample(Record):
    """A question from a job's file, the file's answer to it, the base's and the adapter's."""

    prompt: str
    expected: str
    base: str
    adapter: str


@dataclass(frozen=True)
class Job(Record):
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

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        ours = raw["verandah"]
        judgement = ours.get("judgement")
        return cls._read(
            raw,
            result_files=tuple(raw["result_files"]),
            judgement=None if judgement is None else Judgement.of(judgement),
            samples=tuple(map(Sample.of, ours.get("samples") or ())),
        )


@dataclass(frozen=True)
class Checkpoint(Record):
    """A version that a job published, during training or at its end. Its id is `model`."""

    id: str
    model: str
    step: int
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        model, step = raw["fine_tuned_model_checkpoint"], raw["step_number"]
        return cls._read(raw, model=model, step=step)


@dataclass(frozen=True)
class Event(Record):
    """An event of a job. `data` has the figures of an event of type `metrics`."""

    id: str
    created_at: int
    level: str
    message: str
    type: str
    data: Mapping[str, Any]
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls._read(raw, type=raw.get("type") or "message", data=raw.get("data") or {})


@dataclass(frozen=True)
class Share(Record):
    """An adapter that `owner` lets `raw["with"]` ("all": everybody) use or copy."""

    id: str
    adapter: str
    owner: str
    to: str
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Adapter(Record):
    """An adapter. `residency` is its place: resident, host, loading or stored. Of one that another
    owner shares, `shared` is what it is shared to, and the place is not told."""

    id: str
    version: int
    versions: tuple[int, ...]
    raw: Mapping[str, Any] = field(repr=False)
    residency: str = ""
    pinned: bool = False
    shared: str = ""
    method: str | None = None
    rank: int | None = None
    bytes: int | None = None
    created_at: int | None = None
    error: str | None = None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls._read(raw, versions=tuple(raw["versions"]))
