"""Reads, checks and packs adapters on threads of its own, so that no step waits for a disk.

Knows no slots and no device memory. Thread-safe.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from adapters_store.store_errors import StoreError
from server.adapters.loading.checks import AdapterChecks, all_finite
from server.adapters.loading.packing import RowPackers
from server.adapters.memory.adapter_facts import AdapterFacts
from server.adapters.memory.host_cache import HostCache, LoadedAdapter
from server.adapters.memory.layouts import Layouts
from server.adapters.memory.matrices import HostBases, LoadedBasis
from server.adapters.methods.basis_id import BasisId
from server.bases.model import BaseModel
from server.errors import AdapterNotFinite, Unavailable, VerandahError

_MAX_FAILURES = 1024  # remembered until the adapter's next `prepare`


class AdapterLoader:
    """Loads adapters from the store into host memory.

    `on_loaded` is called from a loader thread whenever a load ended, also when it failed.
    """

    def __init__(
        self,
        base: BaseModel,
        store: AdapterStore,
        layouts: Layouts,
        checks: AdapterChecks,
        cache: HostCache,
        bases: HostBases,
        threads: int,
    ) -> None:
        self._base = base
        self._store = store
        self._kinds = RowPackers(base, layouts)
        self._checks = checks
        self._cache = cache
        self._bases = bases
        self._lock = threading.Lock()
        self._loading: dict[AdapterRef, object] = {}
        self._failed: dict[AdapterRef, Exception] = {}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="adapter-loader")
        self.on_loaded: Callable[[], None] | None = None

    def prepare(self, ref: AdapterRef) -> None:
        """Start to load it, unless it is in memory or loading; try again if it failed before."""
        with self._lock:
            self._failed.pop(ref, None)
            if self._ready(ref) is None:
                self._start(ref)

    def fetch(self, ref: AdapterRef) -> tuple[LoadedAdapter, LoadedBasis] | None:
        """The adapter with its bases, or None while it loads; this starts the load.

        Raises:
            InvalidAdapter, StoreError, Unavailable: the last load failed.
        """
        with self._lock:
            failure = self._failed.get(ref)
            if failure is not None:
                raise failure.with_traceback(None)
            ready = self._ready(ref)
            if ready is None:
                self._start(ref)
            return ready

    def is_ready(self, ref: AdapterRef) -> bool:
        """Whether `fetch` would give it now."""
        with self._lock:
            return self._ready(ref) is not None

    def forget(self, ref: AdapterRef) -> None:
        """Drop it. A running load of it will leave nothing behind."""
        with self._lock:
            self._loading.pop(ref, None)
            self._failed.pop(ref, None)
            self._cache.drop(ref)

    def loading(self) -> list[AdapterRef]:
        """Adapters that are loading, in the order of the requests."""
        with self._lock:
            return list(self._loading)

    def close(self) -> None:
        """Stop the threads. Running loads end first."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _ready(self, ref: AdapterRef) -> tuple[LoadedAdapter, LoadedBasis] | None:
        loaded = self._cache.get(ref)
        if loaded is None:
            return None
        basis = self._bases.get(loaded.facts.basis, loaded.facts.need)
        return None if basis is None else (loaded, basis)

    def _start(self, ref: AdapterRef) -> None:
        if ref in self._loading:
            return
        ticket = object()
        try:
            self._threads.submit(self._load, ref, ticket)
        except RuntimeError as error:
            raise Unavailable(
                f"adapter {ref} cannot be loaded while the server is stopping: try again later"
            ) from error
        self._loading[ref] = ticket

    def _load(self, ref: AdapterRef, ticket: object) -> None:
        with self._lock:
            if self._loading.get(ref) is not ticket:
                return  # forgotten while it waited
        loaded, failure = self._try(ref)
        with self._lock:
            if self._loading.get(ref) is ticket:
                del self._loading[ref]
                if loaded is not None:
                    self._cache.put(loaded)
                if failure is not None:
                    self._remember(ref, failure)
        if self.on_loaded is not None:
            self.on_loaded()

    def _try(self, ref: AdapterRef) -> tuple[LoadedAdapter | None, Exception | None]:
        try:
            loaded = self._cache.get(ref) or self._read(ref)
            self._bases.ensure(loaded.facts.basis, loaded.facts.need)
        except (VerandahError, StoreError) as error:
            return None, error
        # Any other error of a disk or a driver must reach the request, not end this thread.
        except Exception as error:
            failure = Unavailable(f"adapter {ref} could not be loaded: {error!r}; try again")
            failure.__cause__ = error
            return None, failure
        return loaded, None

    def _read(self, ref: AdapterRef) -> LoadedAdapter:
        content = self._store.read(ref)
        manifest = content.header.manifest
        method = self._checks.check(content)
        kind = self._kinds.of(method, manifest, content.table)
        row = kind.pack(content, pinned=self._base.device.type == "cuda")
        if not all_finite(row):
            raise AdapterNotFinite(
                f"adapter {ref} holds values too large for {self._base.dtype}: serve with --dtype "
                "bfloat16 or float32"
            )
        facts = AdapterFacts(
            ref=ref,
            method=method,
            rank=manifest.rank,
            targets=kind.need.targets,
            layout=kind.layout,
            basis=BasisId.of(manifest),
            need=kind.need,
            bytes=row.nbytes,
            sha256=content.header.sha256,
        )
        return LoadedAdapter(facts, row)

    def _remember(self, ref: AdapterRef, failure: Exception) -> None:
        self._failed[ref] = failure
        while len(self._failed) > _MAX_FAILURES:
            del self._failed[next(iter(self._failed))]
