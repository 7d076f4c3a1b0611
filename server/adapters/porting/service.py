"""Where adapters come in from elsewhere, and go out: one at a time, away from the engine.

Knows no HTTP. Everything about a checkpoint is looked at before anything of it is kept.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from adapters_store.foreign import basis_sha256
from adapters_store.manifest import AdapterRef, Manifest, check_name
from adapters_store.peft.adapter_config import MAX_CONFIG_BYTES, PeftConfig, parse_config
from adapters_store.peft.folder import (
    WEIGHTS_NAME,
    PeftTensors,
    check_file_name,
    open_tensors,
    write_folder,
)
from adapters_store.store import AdapterStore
from server.adapters.loading.checks import AdapterChecks, check_tensors
from server.adapters.memory.matrices import BasisSource
from server.adapters.methods.basis_id import NO_BASIS, STORED
from server.adapters.porting.from_lora import read_lora
from server.adapters.porting.from_randlora import read_randlora
from server.adapters.porting.from_vera import read_vera
from server.adapters.porting.incoming import Imported, Origin, check_served, targets_of
from server.adapters.porting.merged import write_merged
from server.adapters.porting.outgoing import Outgoing, as_lora, as_peft
from server.bases.model import BaseModel
from server.errors import InvalidRequest, QueueFull

FORMATS: Final = ("peft", "peft-lora", "merged")

_LINE = 4  # the one at work, and those that wait
_PATIENCE_S = 60.0


class PortingService:
    """Imports into `store`, exports from it, for one base. Thread-safe.

    Args:
        source: what the base was loaded from, as in `load_base`; merged exports read it again.
        folder: for files on their way, made if it is missing and emptied now.
    """

    def __init__(
        self, base: BaseModel, store: AdapterStore, source: str, folder: Path, *, max_rank: int
    ) -> None:
        self._base = base
        self._store = store
        self._source = source
        self._folder = folder
        self._max_rank = max_rank
        self._turn = threading.Lock()
        self._line = threading.BoundedSemaphore(_LINE)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def take_in(
        self,
        owner: str,
        name: str,
        config: BinaryIO,
        weights: BinaryIO,
        *,
        file_name: str = WEIGHTS_NAME,
        torch_era: str = "",
        half_dtype: str = "",
        base_dtype: str = "float32",
    ) -> AdapterRef:
        """Publish a PEFT checkpoint as the next version of `name`.

        Args:
            config, weights: `adapter_config.json` and `adapter_model.safetensors`.
            file_name: what the sender calls `weights`.
            torch_era, half_dtype, base_dtype: see `Origin`.

        Raises:
            InvalidCheckpoint, InvalidAdapter, InvalidRequest, InvalidName: it cannot be taken in;
                nothing of it is kept.
            QueueFull: others are still at it.
        """
        check_name("adapter", name)
        check_file_name(file_name)
        origin = Origin(torch_era, half_dtype, base_dtype)
        parsed = parse_config(config.read(MAX_CONFIG_BYTES + 1))
        with self._one_at_a_time(), tempfile.TemporaryDirectory(dir=self._folder) as folder:
            path = Path(folder) / WEIGHTS_NAME
            with path.open("xb") as file:
                shutil.copyfileobj(weights, file)
            with open_tensors(path) as tensors:
                imported = self._read(parsed, tensors, origin)
            targets = targets_of(imported.tensors)
            check_tensors(imported.method, self._base, targets, imported.rank, imported.tensors)
            check_served(self._base, imported)
            manifest = self._manifest(parsed, imported)
            return self._store.publish(owner, name, manifest, imported.tensors, imported.basis)

    def give_out(self, ref: AdapterRef, form: str) -> Path:
        """A new folder that holds an adapter as one of `FORMATS`; the caller removes it.

        Raises:
            InvalidRequest: there is no such format, or it cannot express the adapter.
            InvalidAdapter: the adapter is of another base.
            AdapterNotFound, AdapterCorrupt: it cannot be read.
            UnsupportedModel: the base's files cannot be read again.
            QueueFull: others are still at it.
        """
        if form not in FORMATS:
            raise InvalidRequest(f"format {form!r} is none of {', '.join(FORMATS)}", param="format")
        with self._one_at_a_time():
            adapter = self._open(ref)
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            try:
                if form == "merged":
                    write_merged(adapter, self._source, folder)
                else:
                    made = as_peft(adapter) if form == "peft" else as_lora(adapter)
                    write_folder(folder, made.config, made.tensors)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            return folder

    def _read(self, config: PeftConfig, tensors: PeftTensors, origin: Origin) -> Imported:
        if config.kind == "VERA":
            return read_vera(self._base, config, tensors, origin, self._max_rank)
        if config.kind == "RANDLORA":
            return read_randlora(self._base, config, tensors, origin, self._max_rank)
        return read_lora(self._base, config, tensors, self._max_rank)

    def _manifest(self, config: PeftConfig, imported: Imported) -> Manifest:
        told = {
            "imported_from": f"PEFT {config.kind}",
            "peft_version": config.text("peft_version"),
            "peft_base": config.text("base_model_name_or_path"),
        }
        brought = imported.basis is not None
        return Manifest(
            method=imported.method.name,
            rank=imported.rank,
            scale=imported.scale,
            seed=0,
            basis_spec=STORED if brought else NO_BASIS,
            basis_sha256="" if imported.basis is None else basis_sha256(imported.basis),
            base_name=self._base.name,
            base_fingerprint=self._base.fingerprint,
            targets=targets_of(imported.tensors),
            created_at=int(time.time()),
            options=dict(imported.method.options),
            provenance={k: _shown(v) for k, v in told.items() if v} | dict(imported.provenance),
        )

    def _open(self, ref: AdapterRef) -> Outgoing:
        content = self._store.read(ref)
        source = BasisSource(self._base, self._store.foreign)
        method = AdapterChecks(self._base, source, self._max_rank).check(content)
        return Outgoing(self._base, source, method, content.header.manifest, content.tensors())

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        # Who waits keeps a thread of the HTTP side: all of them must not stand here.
        if not self._line.acquire(blocking=False):
            raise QueueFull(f"{_LINE} imports and exports wait already", retry_after_s=30)
        try:
            if not self._turn.acquire(timeout=_PATIENCE_S):
                raise QueueFull("the import or export before takes its time", retry_after_s=30)
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._line.release()


def _shown(text: str) -> str:
    """What somebody else wrote, fit for a screen: a config may hold any character."""
    return "".join(filter(str.isprintable, text))[:200]
