"""The services of the HTTP application over a running front. Starts nothing."""

import time

from server import interfaces
from server.adapters.methods.registry import method_specs
from server.api.app_services import BaseCard, Services, Tenants
from server.app import describe
from server.bases.answer_ends import AnswerEnds
from server.config import Settings
from server.metrics import Metrics
from server.tenancy.keys import Keys
from server.tenancy.limits.limit_store import DatabaseStore
from server.tenancy.limits.request_limits import RequestLimits
from server.tenancy.sign_in.group_map import GroupMap
from server.tenancy.sign_in.signing_in import Lives, SigningIn
from server.tenancy.usage.busy_names import BusyNames
from server.tenancy.usage.usage_counts import UsageCounts
from server.training.job.job_estimator import JobEstimator
from server.wiring.building import Records
from server.wiring.front import Front
from server.wiring.start_checks import client_secret, public_url

_MIB = 2**20


def wire(
    settings: Settings,
    records: Records,
    front: Front,
    metrics: Metrics,
    worker: interfaces.Worker | None,
) -> Services:
    """The services of the HTTP application. `worker` trains in a process of its own."""
    tenants = Tenants.of(records.database, records.quotas.defaults)
    limits = RequestLimits(DatabaseStore(records.database), tenants.limits)
    limits.refresh()
    return Services(
        base=BaseCard(
            id=settings.served_name,
            name=front.base.name,
            fingerprint=front.base.fingerprint,
            vocab_size=front.base.vocab_size,
            created_at=int(time.time()),
            turn_ends=AnswerEnds.of(front.base, front.tokenizer).turn,
            dtype=str(front.base.dtype).removeprefix("torch."),
        ),
        engine=front.engine,
        engines=front.processes,
        tokenizer=front.tokenizer.capped(front.engine.max_context),
        adapters=records.store,
        residency=front.residency,
        inspections=front.inspections,
        porting=front.porting,
        estimator=JobEstimator(
            front.base, front.tokenizer, settings.max_rank, speed=records.jobs.speed
        ),
        files=records.files,
        jobs=records.jobs,
        methods=method_specs(),
        keys=Keys(settings.key, tenants.keys),
        tenants=tenants,
        limits=limits,
        usage=UsageCounts(BusyNames(settings.served_name, settings.metrics_names)),
        metrics=metrics,
        worker=front.worker if worker is None else worker,
        problem=front.problem,
        describe=describe,
        max_rank=settings.max_rank,
        request_timeout_s=settings.request_timeout_s,
        max_body_bytes=_max_body_bytes(settings, front.engine.max_context),
        max_file_bytes=int(settings.max_file_mb * _MIB),
        signing_in=_signing_in(settings, records) if settings.oidc_issuer else None,
        allowed_origins=settings.allowed_origins,
        refuse_long_answers=settings.refuse_long_answers,
    )


def _signing_in(settings: Settings, records: Records) -> SigningIn:
    from server.tenancy.sign_in.oidc_provider import OidcProvider, ProviderOptions  # an extra

    groups = GroupMap(settings.oidc_groups, settings.oidc_default_owner)
    options = ProviderOptions(
        issuer=settings.oidc_issuer,
        client=settings.oidc_client_id,
        secret=client_secret(settings),
        scopes=settings.oidc_scopes,
        groups_claim=settings.oidc_groups_claim,
        needs_groups=groups.needs_groups,
    )
    lives = Lives(int(settings.oidc_session_hours * 3600), int(settings.oidc_key_days * 86_400))
    provider = OidcProvider(options)
    return SigningIn(provider, records.database, groups, public_url(settings), lives)


def _max_body_bytes(settings: Settings, max_context: int) -> int:
    """The setting, or what a prompt of `max_context` tokens takes at most: a token is four letters
    in most languages, and of text in JSON's escapes a letter may take six bytes."""
    return int(settings.max_body_mb * _MIB) or max(2 * _MIB, 16 * max_context)
