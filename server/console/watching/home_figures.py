"""What the first page shows: of the whole server to its admin, of an owner to its keys."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from server.adapters.adapter_status import AdapterState
from server.api.app_services import Services
from server.api.history import History
from server.api.ops import operations_of
from server.console.rendering import Page, count
from server.console.watching.sparklines import MINUTES, Sparkline, sparkline
from server.jobs.queue.job import Job, JobStatus
from server.jobs.queue.quotas import adapter_name
from server.scheduler.request import LoopStats

_MOST_TRAINING: Final = 5
_MOST_ADAPTERS: Final = 6
_LATE: Final = 20  # jobs that are looked through for the newest adapters


@dataclass(frozen=True)
class Figure:
    """A number with its name. `told` says in words what the curve shows."""

    label: str
    value: str
    note: str = ""
    curve: Sparkline | None = None
    told: str = ""


@dataclass(frozen=True)
class MemoryPart:
    """What takes some of the devices' memory; `share` of all, 0 to 1."""

    label: str
    bytes: int
    share: float
    note: str = ""


@dataclass(frozen=True)
class Training:
    """A job that is running. `link`: empty where the page of the job is another owner's."""

    name: str
    link: str
    owner: str
    step: int
    steps: int
    ends_at: int | None

    @property
    def left_s(self) -> float | None:
        return None if self.ends_at is None else max(self.ends_at - time.time(), 0.0)


@dataclass(frozen=True)
class ListedAdapter:
    """An adapter of the owner's. `taught_at`, `verdict`: of the job that made it, if one did."""

    name: str
    taught_at: int | None = None
    verdict: str = ""


@dataclass(frozen=True)
class HomeFigures:
    """All that changes on the page while somebody looks at it."""

    problems: Sequence[str]
    figures: Sequence[Figure]
    memory: Sequence[MemoryPart]
    devices: str
    training: Sequence[Training]
    jobs: tuple[int, int]
    adapters: Sequence[ListedAdapter]
    adapter_count: int
    minutes: int = MINUTES

    @classmethod
    def of(cls, page: Page, health: Mapping[str, object]) -> "HomeFigures":
        """Those that the page's principal may see."""
        adapters, adapter_count = _adapters_of(page)
        return cls(
            problems=_problems(health),
            figures=_figures(page),
            memory=_memory(page),
            devices=_devices(page),
            training=_training_now(page),
            jobs=_jobs(page),
            adapters=adapters,
            adapter_count=adapter_count,
        )


def _problems(health: Mapping[str, object]) -> Sequence[str]:
    """What /health says is wrong, in words."""
    engines, worker = health.get("engines"), health.get("worker")
    processes = [*(engines if isinstance(engines, list) else []), worker]
    found = [health.get("problem")] + [
        it.get("problem") or "a part of the server does not run, and is started again"
        for it in processes
        if isinstance(it, dict) and not it.get("alive")
    ]
    return [str(problem) for problem in found if problem]


def _figures(page: Page) -> Sequence[Figure]:
    """The live figures that this principal may see."""
    found: list[Figure] = []
    if page.may("usage.read"):
        found += _rates(page)
    if page.known.server_admin:
        found += _cache(page.services)
    if page.may("usage.read"):
        found.append(_refused(page))
    if page.may("adapters.read", "models.use"):
        found.append(_adapters(page))
    return found


def _rates(page: Page) -> Sequence[Figure]:
    history, stats = page.services.history, page.services.history.latest
    whose: str | None = page.owner
    running = ""
    if page.known.server_admin:
        whose = None
        running = f"{stats.running} running, {stats.waiting} waiting" if stats else ""
    return (
        _rate(history, whose, "Requests a second", "requests", running),
        _rate(history, whose, "Tokens a second, answers", "completion"),
        _rate(history, whose, "Tokens a second, prompts", "prompt"),
    )


def _refused(page: Page) -> Figure:
    whose = None if page.known.server_admin else page.owner
    refused, taken = (
        page.services.history.in_last(60, whose, name) for name in ("refusals", "requests")
    )
    return Figure("Refused, last minute", count(refused), f"{taken:,} were answered")


def _rate(history: History, whose: str | None, label: str, name: str, note: str = "") -> Figure:
    curve = sparkline(history.rates(whose, name))
    told = f"{label} in the last {MINUTES} minutes: at most {_decimal(curve.most)}" if curve else ""
    return Figure(label, _decimal(history.rate(whose, name)), note, curve, told)


def _decimal(number: float) -> str:
    """A rate: with a decimal where it is small."""
    return f"{number:.1f}" if 0.05 <= number < 9.95 else count(number)


def _cache(services: Services) -> Sequence[Figure]:
    """How full the memory of keys and values is."""
    stats = services.history.latest
    if stats is None or not stats.kv_blocks_total:
        return ()
    curve = sparkline(services.history.stats(_kv_share), most=1.0)
    told = f"Share of the KV cache in use in the last {MINUTES} minutes"
    return (Figure("KV cache in use", f"{_kv_share(stats):.0%}", "", curve, told),)


def _kv_share(stats: LoopStats) -> float:
    return stats.kv_blocks_used / max(stats.kv_blocks_total, 1)


def _adapters(page: Page) -> Figure:
    services, mine = page.services, page.owner
    status = services.residency.snapshot()
    if page.known.server_admin:
        stored = operations_of(page.request).stored.read()
    else:
        stored = len(services.adapters.names(mine))
        status = [it for it in status if it.ref.owner == mine]
    on_device = sum(it.state == AdapterState.RESIDENT for it in status)
    note = f"{on_device:,} on the device, {len(status) - on_device:,} in host memory"
    return Figure("Adapters stored", count(stored), note)


def _jobs(page: Page) -> tuple[int, int]:
    """How many jobs are running, and wait or are paused."""
    if not page.may("jobs"):
        return 0, 0
    if page.known.server_admin:
        counts = page.services.jobs.counts()
        return counts[JobStatus.RUNNING], counts[JobStatus.QUEUED] + counts[JobStatus.PAUSED]
    kept = page.services.jobs.kept(page.owner)
    return kept.running_jobs, kept.waiting_jobs


def _memory(page: Page) -> Sequence[MemoryPart]:
    """What takes the devices' memory, for the server's admin; empty if the engine does not tell."""
    stats = page.services.history.latest
    if stats is None or not page.known.server_admin or not stats.memory.weights:
        return ()
    told = stats.memory
    parts = [
        ("Weights of the base", told.weights, ""),
        ("Keys and values", told.kv, f"{_kv_share(stats):.0%} in use"),
        ("Vectors of adapters", told.adapters, "room for all slots"),
        ("Matrices that adapters read", told.matrices, ""),
    ]
    if told.total:
        known = sum(part[1] for part in parts)
        parts.append(("Training and other", max(told.total - told.free - known, 0), ""))
        parts.append(("Free", told.free, ""))
    whole = sum(part[1] for part in parts) or 1
    return [MemoryPart(label, taken, taken / whole, note) for label, taken, note in parts]


def _devices(page: Page) -> str:
    """The devices of the engines by name; empty until they have told."""
    stats = page.services.history.latest
    names = Counter(stats.memory.devices) if stats else Counter[str]()
    return ", ".join(f"{n} x {name}" if n > 1 else name for name, n in names.items())


def _training_now(page: Page) -> Sequence[Training]:
    """What trains now: of all owners for the server's admin."""
    if not page.may("jobs"):
        return ()
    whose = None if page.known.server_admin else page.owner
    return [_training(page, job) for job in page.services.jobs.training(whose, _MOST_TRAINING)]


def _training(page: Page, job: Job) -> Training:
    return Training(
        name=adapter_name(job.suffix, job.id),
        link=f"/console/jobs/{job.id}" if job.owner == page.owner else "",
        owner=job.owner,
        step=job.step,
        steps=max(job.estimate.steps if job.estimate else 0, job.step),
        ends_at=job.estimated_finish,
    )


def _adapters_of(page: Page) -> tuple[Sequence[ListedAdapter], int]:
    """Some of the owner's adapters, those first that jobs made last; and how many it has."""
    if not page.may("adapters.read"):
        return (), 0
    names = page.services.adapters.names(page.owner)
    there, found = set(names), {}
    if page.may("jobs"):
        jobs = page.services.jobs.list(page.owner, limit=_LATE, status=JobStatus.SUCCEEDED)
        for job in jobs.items:
            name = adapter_name(job.suffix, job.id)
            if name in there and name not in found:
                verdict = (job.evaluation and job.evaluation.verdict) or ""
                found[name] = ListedAdapter(name, job.finished_at, verdict)
    rest = (ListedAdapter(name) for name in names if name not in found)
    return [*found.values(), *islice(rest, _MOST_ADAPTERS)][:_MOST_ADAPTERS], len(names)
