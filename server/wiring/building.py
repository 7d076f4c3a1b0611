"""Builds the base, its engine and the records on disk from the settings. Knows no HTTP."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from adapters_store.manifest import AdapterRef, parse_adapter_id, split_owner
from adapters_store.store import AdapterStore
from adapters_store.store_errors import AdapterNotFound, StoreError
from server.adapters.residency import ResidentAdapters
from server.bases.answer_ends import AnswerEnds
from server.bases.base_files import load_base
from server.bases.model import BaseModel, device_works
from server.bases.tokenizer import ChatTokenizer, load_tokenizer
from server.config import BadOption, Settings
from server.db.session import Database
from server.engine.blocks import BlockPool
from server.engine.device import high_priority_stream
from server.engine.fused.fused_builder import build_fused_forward
from server.engine.kv_cache import KVCache
from server.engine.runner import Runner
from server.jobs.files.file_store import Files
from server.jobs.queue.job_queue import JobQueue
from server.jobs.queue.quotas import Quotas
from server.loop_progress import StepProgress
from server.metrics import Metrics
from server.pulse import Pulse
from server.scheduler.loop import Limits, ServingLoop
from server.tenancy.principal import DEFAULT_OWNER
from server.training.run.defaults import BASIS_SEED
from server.wiring.default_limits import owner_limits
from server.wiring.device_memory import memory_of
from server.wiring.process import end_soon
from server.wiring.sizes import Sizes, context_of, kv_memory_mb
from server.wiring.start_checks import no_such_pin

_MIB = 2**20

Say = Callable[[str], None]


@dataclass(frozen=True)
class Records:
    """The database and the folders of a home, which server and worker share."""

    database: Database
    store: AdapterStore
    files: Files
    jobs: JobQueue
    quotas: Quotas


@dataclass(frozen=True)
class RunningEngine:
    """The base model and what runs it. `pulse` measures how long its steps take."""

    base: BaseModel
    tokenizer: ChatTokenizer
    adapters: ResidentAdapters
    loop: ServingLoop
    pulse: Pulse


@contextmanager
def open_records(
    settings: Settings, *, create: bool = True, patience_s: float | None = None
) -> Iterator[Records]:
    """Open the home. Makes and migrates what is missing, and closes the database at the end.

    Args:
        patience_s: see `Database`; the migration has more.

    Raises:
        Unavailable: the database is missing and `create` is False.
    """
    home = settings.home_path
    home.mkdir(parents=True, exist_ok=True)
    with closing(Database(settings.database)) as patient:
        patient.migrate(create=create)
    with closing(Database(settings.database, patience_s=patience_s)) as database:
        max_bytes = int(settings.max_file_mb * _MIB)
        store = AdapterStore(home / "adapters")
        quotas = Quotas(owner_limits(settings), store.sizes)
        files = Files(database, home / "files", max_bytes, quotas)
        yield Records(database, store, files, JobQueue(database, quotas), quotas)


def load_model(settings: Settings, threads: int) -> tuple[BaseModel, ChatTokenizer]:
    """The base model on its device, and its tokenizer. Raises UnsupportedModel."""
    if threads:
        torch.set_num_threads(threads)
    hide_progress_bars()
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    base = load_base(settings.model, device=device_of(settings), dtype=dtype)
    tokenizer = load_tokenizer(settings.model, sanitizes=settings.sanitize_control_tokens)
    return base.without(tokenizer.nameless(base.vocab_size)), tokenizer


def hide_progress_bars() -> None:
    """Turn transformers' progress bars off unless a terminal shows them."""
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


@contextmanager
def running_engine(
    settings: Settings,
    records: Records,
    metrics: Metrics,
    say: Say,
    progress: StepProgress | None = None,
) -> Iterator[RunningEngine]:
    """Load the base model and run a serving loop over it, until the end of the context.

    Args:
        progress: of the loading, and then of the loop.
    """
    pins = [pinned_ref(records.store, name) for name in settings.pinned]
    say(f"loading the base model {settings.model}")
    started = time.monotonic()
    base, tokenizer = load_model(settings, settings.threads or default_threads())
    say(f"loaded {base.name} on {base.device} in {time.monotonic() - started:.1f} s")
    pulse, within = Pulse(), high_priority_stream(base.device)
    with within():
        adapters = _adapters(settings, base, records.store)
        loop = _loop(settings, base, tokenizer, adapters, metrics, pulse, within, progress)
        adapters.on_loaded = loop.wake
        for ref in pins:
            adapters.pin(ref)
    loop.start()
    try:
        yield RunningEngine(base, tokenizer, adapters, loop, pulse)
    finally:
        loop.stop(0)
        adapters.close()


def _adapters(settings: Settings, base: BaseModel, store: AdapterStore) -> ResidentAdapters:
    try:
        return ResidentAdapters(
            base,
            store,
            max_rank=settings.max_rank,
            slots=settings.adapter_slots,
            memory_mb=Sizes.of(settings, base.device).adapter_mb,
            basis_mb=settings.basis_memory_mb,
            host_cache_mb=settings.host_cache_mb,
            # On a CPU a dense update costs more than it saves while answers run: decision 8.
            dense_mb=settings.dense_memory_mb if base.device.type == "cuda" else 0,
        )
    except ValueError as error:
        raise BadOption(str(error)) from error


def _loop(
    settings: Settings,
    base: BaseModel,
    tokenizer: ChatTokenizer,
    adapters: ResidentAdapters,
    metrics: Metrics,
    pulse: Pulse,
    within: Callable[[], AbstractContextManager[object]],
    progress: StepProgress | None,
) -> ServingLoop:
    try:
        memory_mb = kv_memory_mb(settings, base)
        kv = KVCache(base, memory_mb=memory_mb, block_tokens=settings.kv_block_tokens)
    except ValueError as error:
        raise BadOption(str(error)) from error
    sizes = Sizes.of(settings, base.device)
    max_context = context_of(settings, base)
    return ServingLoop(
        _runner(settings, base, adapters, kv, sizes, max_context),
        adapters,
        BlockPool(
            kv.num_blocks,
            kv.block_tokens,
            prefix_cache=settings.prefix_cache,
            across_owners=settings.share_prefixes,
        ),
        tokenizer.stream,
        eos=AnswerEnds.of(base, tokenizer).eos,
        limits=Limits(
            max_rows=sizes.max_rows,
            max_step_tokens=sizes.step_tokens,
            max_waiting=settings.max_waiting,
            max_context=max_context,
        ),
        metrics=metrics,
        pulse=pulse,
        thread_context=within,
        device_works=partial(device_works, base.device),
        on_device_lost=end_soon,
        progress=progress,
        memory=memory_of(base, kv, adapters),
    )


def _runner(
    settings: Settings,
    base: BaseModel,
    adapters: ResidentAdapters,
    kv: KVCache,
    sizes: Sizes,
    max_context: int,
) -> Runner:
    """Uses kernels and captured graphs where this base, device and dtype support them."""
    fast = None
    if settings.fused:
        fast = build_fused_forward(
            base,
            adapters,
            kv,
            max_rows=sizes.max_rows,
            max_step_tokens=sizes.step_tokens,
            max_context=max_context,
            max_rank=settings.max_rank,
            seed=BASIS_SEED,
        )
    if fast is None:
        return Runner(base, adapters, kv)
    runner = Runner(base, adapters, kv, fast.forward)
    with _capture_bar() as on_progress:
        fast.capture(on_progress)
    return runner


@contextmanager
def _capture_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar. Yields what moves it, given how many graphs are captured, and their total."""
    columns = TextColumn("verandah: {task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("capturing decode steps", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def pinned_ref(store: AdapterStore, name: str) -> AdapterRef:
    """The version that an id in `--pinned` names: NAME of the default owner, or OWNER/NAME. Raises
    BadOption."""
    try:
        owner, rest = split_owner(name)
        return store.resolve(owner or DEFAULT_OWNER, *parse_adapter_id(rest))
    except AdapterNotFound as error:
        raise no_such_pin(name) from error
    except StoreError as error:
        raise BadOption(f"--pinned {name}: {error}") from error


def default_threads() -> int:
    """All cores but one, which HTTP and tokenizers need. A thread without a core costs more than it
    brings, because every small product of a decode step waits for the slowest thread.
    """
    return max(1, len(os.sched_getaffinity(0)) - 1)


def on_cuda(settings: Settings) -> bool:
    """Whether the model is to run on CUDA devices. Raises BadOption if there is none."""
    return device_of(settings).startswith("cuda")


def device_of(settings: Settings) -> str:
    """The type of the device on which the model is to run. Raises BadOption if there is none."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise BadOption(
            "--device cuda: torch finds no CUDA device; use --device cpu, or install a driver and "
            "torch for CUDA"
        )
    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"
