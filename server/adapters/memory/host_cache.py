"""Keeps adapters in host memory, ready to be copied into a slot; the least recently used leaves.

Knows no slots and no files. Thread-safe.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from adapters_store.manifest import AdapterRef
from server.adapters.memory.adapter_facts import AdapterFacts

# Kept whatever their size: an adapter that was just loaded must live until it is acquired.
_LEAST_ADAPTERS = 8


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """A checked adapter, its vectors packed as a row of a bank (see `RowLayout.pack`)."""

    facts: AdapterFacts
    row: Tensor


class HostCache:
    """Holds up to `max_bytes`, and the last few loaded in any case."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._loaded: OrderedDict[AdapterRef, LoadedAdapter] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, ref: AdapterRef) -> LoadedAdapter | None:
        with self._lock:
            loaded = self._loaded.get(ref)
            if loaded is not None:
                self._loaded.move_to_end(ref)
            return loaded

    def put(self, loaded: LoadedAdapter) -> None:
        with self._lock:
            self._drop(loaded.facts.ref)
            self._loaded[loaded.facts.ref] = loaded
            self._bytes += loaded.facts.bytes
            while self._bytes > self._max_bytes and len(self._loaded) > _LEAST_ADAPTERS:
                self._drop(next(iter(self._loaded)))

    def drop(self, ref: AdapterRef) -> None:
        with self._lock:
            self._drop(ref)

    def facts(self) -> list[AdapterFacts]:
        """Of all adapters in here, least recently used first."""
        with self._lock:
            return [loaded.facts for loaded in self._loaded.values()]

    def _drop(self, ref: AdapterRef) -> None:
        loaded = self._loaded.pop(ref, None)
        if loaded is not None:
            self._bytes -= loaded.facts.bytes
