"""Starts the engine, in this process or in others, with what runs beside it. Knows no endpoint."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from server import interfaces
from server.adapters.inspecting.inspections import Inspections
from server.adapters.porting.service import PortingService
from server.bases.base_files import check_config, load_stored, outline_base
from server.bases.model import BaseModel, fingerprint_of
from server.bases.tokenizer import ChatTokenizer, load_tokenizer
from server.config import BadOption, Settings
from server.errors import UnsupportedModel
from server.loop_progress import Progress, StepProgress
from server.metrics import Metrics
from server.replicas.fleet import Fleet
from server.replicas.fleet_metrics import add_fleet_metrics
from server.replicas.fleet_residency import FleetResidency
from server.replicas.messages import EngineFacts
from server.replicas.replica import Replica, WorkerProxy
from server.tenancy.principal import DEFAULT_OWNER
from server.wiring.building import (
    Records,
    Say,
    default_threads,
    hide_progress_bars,
    on_cuda,
    pinned_ref,
    running_engine,
)
from server.wiring.process import command, end_soon, environment, worker_id
from server.wiring.training import training_in_thread, trains_in_thread

log = logging.getLogger(__name__)

_HUNG_GRACE_S = 3.0  # in which /health tells what hangs


@dataclass(frozen=True)
class Front:
    """What runs behind the HTTP application.

    `base` is the model, or its outline on torch's meta device if engines have their own processes.
    `processes` are those engines; empty if the engine is in this process. `worker` trains in an
    engine's process; None if none does. `loops` run in this process. `give_up` ends this
    process because one of them hangs, and from then on `problem` says so.
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
    loops: Sequence[Progress] = ()
    give_up: Callable[[str], None] = lambda _problem: None
    problem: Callable[[], str] = lambda: ""


@contextmanager
def running_front(
    settings: Settings, records: Records, metrics: Metrics, say: Say
) -> Iterator[Front]:
    """Start the engine or engines that the settings ask for; stops them at the end."""
    _tell_of_shadowed(settings, records, say)
    start = _in_processes if _in_own_processes(settings) else _in_this_process
    with start(settings, records, metrics, say) as front:
        yield front


def check_base_and_devices(settings: Settings) -> None:
    """Check the base's configuration and the devices, before anything is made in the home.

    Raises:
        BadOption, UnsupportedModel: the settings ask for what is not there.
    """
    if on_cuda(settings) and _in_own_processes(settings):
        _devices(settings.replicas)
    trains_in_thread(settings)
    check_config(settings.model)


def _tell_of_shadowed(settings: Settings, records: Records, say: Say) -> None:
    """An adapter may be older than the base model's name."""
    name = settings.served_name
    if name in records.store.names(DEFAULT_OWNER):
        say(
            f"an adapter is named {name!r}, as the base model is, so that name reaches the base "
            f"model: ask the adapter as {name}@VERSION, delete it with `verandah adapters delete "
            f"{name}`, or choose another --served-name"
        )


def _in_own_processes(settings: Settings) -> bool:
    """Whether engines get their own processes. On a CPU of few cores that would only cost time."""
    if settings.engine_process == "auto":
        return settings.replicas > 1 or on_cuda(settings)
    return settings.engine_process == "yes"


@contextmanager
def _in_this_process(
    settings: Settings, records: Records, metrics: Metrics, say: Say
) -> Iterator[Front]:
    serving = StepProgress("the start of the engine")
    training = StepProgress("the start of training")
    with (
        running_engine(settings, records, metrics, say, serving) as engine,
        training_in_thread(settings, records, engine, training) as worker,
    ):

        def stop(drain_timeout_s: float) -> None:
            if worker is not None:  # it returns its jobs to the queue while answers end
                worker.stop()
            engine.loop.stop(drain_timeout_s)

        def give_up(problem: str) -> None:
            log.critical("this process hangs and ends: %s", problem)
            end_soon(_HUNG_GRACE_S)
            engine.loop.give_up(problem)

        with closing(Inspections(engine.base, records.store, settings.max_rank)) as inspections:
            yield Front(
                base=engine.base,
                tokenizer=engine.tokenizer,
                engine=engine.loop,
                residency=engine.adapters,
                inspections=inspections,
                porting=_porting(settings, records, engine.base),
                stop=stop,
                worker=worker,
                loops=(serving, training),
                give_up=give_up,
                problem=lambda: engine.loop.problem,
            )


@contextmanager
def _in_processes(
    settings: Settings, records: Records, metrics: Metrics, say: Say
) -> Iterator[Front]:
    pins = [pinned_ref(records.store, name) for name in settings.pinned]
    hide_progress_bars()

    def abandon(pid: int, how: str) -> None:
        records.jobs.abandon(worker_id(pid), how)

    numbers, run = range(settings.replicas), command("engine")
    fleet = Fleet([Replica(n, run, _environment_of(settings, n), abandon) for n in numbers])
    try:
        fleet.start()
        residency = FleetResidency(fleet)
        for ref in pins:
            residency.pin(ref)
        base = _outlined(settings, fleet.facts)
        add_fleet_metrics(metrics, fleet)
        weights = partial(_weights, settings.model, base)
        inspections = Inspections(base, records.store, settings.max_rank, weights)
        with closing(inspections):
            yield Front(
                base=base,
                tokenizer=load_tokenizer(
                    settings.model, sanitizes=settings.sanitize_control_tokens
                ),
                engine=fleet,
                residency=residency,
                inspections=inspections,
                porting=_porting(settings, records, base),
                stop=fleet.stop,
                processes=fleet.replicas,
                worker=WorkerProxy(fleet.replicas[0]) if trains_in_thread(settings) else None,
            )
    finally:
        fleet.stop(0)


def _environment_of(settings: Settings, number: int) -> dict[str, str]:
    """A replica's environment: a CUDA device, or its share of the cores. Only the first trains."""
    threads = settings.threads or max(1, default_threads() // settings.replicas)
    worker = settings.worker and number == 0
    own = settings.model_copy(update={"pinned": (), "threads": threads, "worker": worker})
    variables = environment(own)
    if on_cuda(settings):
        variables["CUDA_VISIBLE_DEVICES"] = _devices(settings.replicas)[number]
    return variables


def _devices(replicas: int) -> list[str]:
    """The names of the CUDA devices that this process may use, one for each replica."""
    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if count < replicas:
        raise BadOption(
            f"--replicas {replicas}: torch finds {count} CUDA devices and each replica needs its "
            "own; lower --replicas"
        )
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def _outlined(settings: Settings, facts: EngineFacts) -> BaseModel:
    """The base without its weights, with what the engines report of it."""
    return replace(
        outline_base(settings.model),
        name=facts.base_name,
        fingerprint=facts.fingerprint,
        eos_token_ids=facts.eos_token_ids,
        device=torch.device(facts.device),
        dtype=getattr(torch, facts.dtype),
    )


def _weights(source: str, base: BaseModel) -> nn.Module:
    """The base's weights on the CPU, in the number format of its files."""
    model = load_stored(source)
    if fingerprint_of(model) != base.fingerprint:
        raise UnsupportedModel(
            f"the files of the base model {source!r} have changed since the server loaded them: "
            "put the old ones back, or start the server again"
        )
    return model


def _porting(settings: Settings, records: Records, base: BaseModel) -> PortingService:
    return PortingService(
        base,
        records.store,
        settings.model,
        settings.home_path / "porting",
        max_rank=settings.max_rank,
        room=partial(records.quotas.keeping, records.database),
    )
