"""What the handlers work with: the services behind HTTP, and who is asking. Knows no endpoint."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from server import interfaces
from server.api.error_body import ErrorBody
from server.api.history import History
from server.api.threads import Threads
from server.db.owner_limits import Limits
from server.db.session import Database
from server.jobs.files.file_store import Files
from server.jobs.queue.job_queue import JobQueue
from server.jobs.queue.method_spec import MethodSpecs
from server.metrics import Metrics
from server.tenancy.deletions import Deletions
from server.tenancy.key_book import KeyBook
from server.tenancy.keys import Keys
from server.tenancy.limits.limit_book import LimitBook
from server.tenancy.limits.request_limits import RequestLimits
from server.tenancy.owners import Owners
from server.tenancy.people import People
from server.tenancy.principal import Principal
from server.tenancy.shares import Shares
from server.tenancy.sign_in.signing_in import SigningIn
from server.tenancy.usage.audit_log import AuditLog
from server.tenancy.usage.usage_book import UsageBook
from server.tenancy.usage.usage_counts import UsageCounts

_UNLIMITED = Limits()


@dataclass(frozen=True)
class BaseCard:
    """What users see of the base model. Requests call it `id`; its own name is `name`.

    `turn_ends` are the tokens with which its chat template closes an answer. `dtype` is the number
    format of its weights.
    """

    id: str
    name: str
    fingerprint: str
    vocab_size: int
    created_at: int
    turn_ends: frozenset[int] = frozenset()
    dtype: str = ""


@dataclass(frozen=True)
class Tenants:
    """The owners, their limits, users, keys and shares in the database, what they used and changed,
    and which are being deleted."""

    owners: Owners
    people: People
    keys: KeyBook
    shares: Shares
    deletions: Deletions
    audit: AuditLog
    usage: UsageBook
    limits: LimitBook

    @classmethod
    def of(cls, database: Database, limits: Limits = _UNLIMITED) -> "Tenants":
        """`limits` are the server's for each owner."""
        return cls(
            Owners(database),
            People(database),
            KeyBook(database),
            Shares(database),
            Deletions(database),
            AuditLog(database),
            UsageBook(database),
            LimitBook(database, limits),
        )


@dataclass(frozen=True)
class Services:
    """All that the handlers work with; `server.wiring.front_services` makes it."""

    base: BaseCard
    engine: interfaces.Engine
    engines: Seq[interfaces.Worker]  # the processes that run it; none if it runs in this one
    tokenizer: interfaces.Tokenizer
    adapters: interfaces.Adapters
    residency: interfaces.Residency
    inspections: interfaces.Inspections
    porting: interfaces.Porting
    estimator: interfaces.JobEstimator
    files: Files
    jobs: JobQueue
    methods: MethodSpecs
    keys: Keys
    tenants: Tenants
    metrics: Metrics
    worker: interfaces.Worker | None
    describe: Callable[[Exception], ErrorBody]
    max_rank: int
    request_timeout_s: float
    max_body_bytes: int
    max_file_bytes: int
    signing_in: SigningIn | None = None
    allowed_origins: Seq[str] = ()
    refuse_long_answers: bool = False
    problem: Callable[[], str] = lambda: ""  # why this process answers no more, in words
    threads: Threads = field(default_factory=Threads)
    limits: RequestLimits = field(default_factory=RequestLimits)
    usage: UsageCounts = field(default_factory=UsageCounts)
    history: History = field(default_factory=History)


# All are coroutines: FastAPI would run functions in the threads that all requests share.
async def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


async def _principal(request: Request) -> Principal:
    # `server.api.gate.KeyCheck` put it there before a byte of the body was read.
    return cast(Principal, request.scope["verandah.principal"])


async def _owner(request: Request) -> str:
    return cast(Principal, request.scope["verandah.principal"]).owner


CurrentServices = Annotated[Services, Depends(_services)]
CurrentPrincipal = Annotated[Principal, Depends(_principal)]
CurrentOwner = Annotated[str, Depends(_owner)]
