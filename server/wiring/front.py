"""What the HTTP side works with, over an engine of this process or engines in their own."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from server import interfaces
from server.adapters.inspecting.inspections import Inspections
from server.adapters.porting.service import PortingService
from server.api.app_services import BaseCard, Services
from server.app import describe
from server.bases.model import BaseModel, fingerprint_of, load_stored, outline_base
from server.bases.tokenizer import ChatTokenizer, load_tokenizer
from server.config import BadOption, Settings
from server.errors import UnsupportedModel
from server.metrics import Metrics
from server.replicas.fleet import Fleet
from server.replicas.fleet_metrics import gather
from server.replicas.fleet_residency import FleetResidency
from server.replicas.messages import Facts
from server.replicas.replica import Replica
from server.replicas.worker_proxy import WorkerProxy
from server.tenancy.keys import Keys
from server.training.job.appraiser import Appraiser
from server.wiring.building import (
    Records,
    Say,
    hush_progress,
    on_cuda,
    pinned,
    running_engine,
    threads_beside_http,
)
from server.wiring.process import command, environment, worker_id
from server.wiring.training import training_beside, trains_beside

_MIB = 2**20


@dataclass(frozen=True)
class Front:
    """`base` is the model itself, or, with engines in processes of their own, its outline on
    torch's meta device. `processes` are those engines; none if the engine is in this process.
    `worker` is who trains in an engine's process; None if nobody does.
    """

    base: BaseModel
    tokenizer: ChatTokenizer
    engine: interfaces.Engine
    residency: interfaces.Residency
    inspections: Inspections
    porting: PortingService
    stop: Callable[[float], None]
    processes: Sequence[interfaces.Worker] = ()
    worker: interfaces.Worker | None = None


@contextmanager
def running_front(
    settings: Settings, records: Records, metrics: Metrics, say: Say
) -> Iterator[Front]:
    """The engine or engines that the settings ask for, ready; stopped in the end."""
    form = _in_processes if _apart(settings) else _in_this_process
    with form(settings, records, metrics, say) as front:
        yield front


def wire(
    settings: Settings,
    records: Records,
    front: Front,
    metrics: Metrics,
    worker: interfaces.Worker | None,
) -> Services:
    """What the HTTP application is made of. `worker` trains in a process of its own."""
    key = settings.api_key
    return Services(
        base=BaseCard(
            id=settings.served_name,
            name=front.base.name,
            fingerprint=front.base.fingerprint,
            vocab_size=front.base.vocab_size,
            created_at=int(time.time()),
        ),
        engine=front.engine,
        engines=front.processes,
        tokenizer=front.tokenizer,
        adapters=records.store,
        residency=front.residency,
        inspections=front.inspections,
        porting=front.porting,
        appraiser=Appraiser(
            front.base, front.tokenizer, settings.max_rank, speed=records.jobs.speed
        ),
        files=records.files,
        jobs=records.jobs,
        keys=Keys(None if key is None else key.get_secret_value()),
        metrics=metrics,
        worker=front.worker if worker is None else worker,
        describe=describe,
        max_rank=settings.max_rank,
        request_timeout_s=settings.request_timeout_s,
        max_body_bytes=int(settings.max_body_mb * _MIB),
        max_file_bytes=int(settings.max_file_mb * _MIB),
    )


def _apart(settings: Settings) -> bool:
    """Whether engines get processes of their own; on a CPU of few cores that would only cost."""
    if settings.engine_process == "auto":
        return settings.replicas > 1 or on_cuda(settings)
    return settings.engine_process == "yes"


@contextmanager
def _in_this_process(
    settings: Settings, records: Records, metrics: Metrics, say: Say
) -> Iterator[Front]:
    with (
        running_engine(settings, records, metrics, say) as engine,
        training_beside(settings, records, engine) as worker,
    ):

        def stop(drain_timeout_s: float) -> None:
            if worker is not None:  # its jobs are given back while answers end
                worker.stop()
            engine.loop.stop(drain_timeout_s)

        inspections = Inspections(engine.base, records.store, settings.max_rank)
        try:
            yield Front(
                base=engine.base,
                tokenizer=engine.tokenizer,
                engine=engine.loop,
                residency=engine.adapters,
                inspections=inspections,
                porting=_porting(settings, records, engine.base),
                stop=stop,
                worker=worker,
            )
        finally:
            inspections.close()


@contextmanager
def _in_processes(
    settings: Settings, records: Records, metrics: Metrics, say: Say
) -> Iterator[Front]:
    pins = [pinned(records.store, name) for name in settings.pinned]
    hush_progress()
    fleet = Fleet(
        [
            Replica(
                number,
                command("engine"),
                _environment_of(settings, number),
                on_end=lambda pid: records.jobs.abandon(worker_id(pid)),
            )
            for number in range(settings.replicas)
        ]
    )
    try:
        fleet.start()
        residency = FleetResidency(fleet)
        for ref in pins:
            residency.pin(ref)
        base = _outlined(settings, fleet.facts)
        inspections = Inspections(
            base, records.store, settings.max_rank, weights=lambda: _weights(settings.model, base)
        )
        gather(metrics, fleet)
        try:
            yield Front(
                base=base,
                tokenizer=load_tokenizer(settings.model),
                engine=fleet,
                residency=residency,
                inspections=inspections,
                porting=_porting(settings, records, base),
                stop=fleet.stop,
                processes=fleet.replicas,
                worker=WorkerProxy(fleet.replicas[0]) if trains_beside(settings) else None,
            )
        finally:
            inspections.close()
    finally:
        fleet.stop(0)


def _environment_of(settings: Settings, number: int) -> dict[str, str]:
    """A replica's environment: it sees one CUDA device only, or has its share of the cores. The
    first alone may train."""
    threads = settings.threads or max(1, threads_beside_http() // settings.replicas)
    worker = settings.worker and number == 0
    own = settings.model_copy(update={"pinned": (), "threads": threads, "worker": worker})
    variables = environment(own)
    if on_cuda(settings):
        variables["CUDA_VISIBLE_DEVICES"] = _devices(settings.replicas)[number]
    return variables


def _devices(replicas: int) -> list[str]:
    """The names of the CUDA devices that we may use, one for each replica."""
    count, told = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if count < replicas:
        raise BadOption(
            f"--replicas {replicas}: torch finds {count} CUDA devices here, and each replica needs "
            "one of its own"
        )
    return told.split(",")[:count] if told else [str(number) for number in range(count)]


def _outlined(settings: Settings, facts: Facts) -> BaseModel:
    """The base without its weights, as the engines told of it."""
    return replace(
        outline_base(settings.model),
        name=facts.base_name,
        fingerprint=facts.fingerprint,
        device=torch.device(facts.device),
        dtype=getattr(torch, facts.dtype),
    )


def _weights(source: str, base: BaseModel) -> nn.Module:
    """The base's weights on the CPU, as its files hold them."""
    model = load_stored(source)
    if fingerprint_of(model) != base.fingerprint:
        raise UnsupportedModel(
            f"the files of base {source!r} are no longer those that this server has loaded: put "
            "them back, or start the server again"
        )
    return model


def _porting(settings: Settings, records: Records, base: BaseModel) -> PortingService:
    return PortingService(
        base,
        records.store,
        settings.model,
        settings.home_path / "porting",
        max_rank=settings.max_rank,
    )
