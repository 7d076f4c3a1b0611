"""Imports and exports adapters as checkpoints, one at a time, away from the engine.

Knows no HTTP. A checkpoint is checked whole before anything of it is kept.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import torch

from adapters_store import disk
from adapters_store.imported_bases import basis_sha256
from adapters_store.manifest import STORED_BASIS, AdapterRef, Manifest, check_name
from adapters_store.peft.adapter_config import MAX_CONFIG_BYTES, PeftConfig, parse_config
from adapters_store.peft.folder import (
    WEIGHTS_NAME,
    check_file_name,
    open_tensors,
    write_folder,
)
from adapters_store.store import AdapterStore
from adapters_store.work_folders import WorkFolders
from server.adapters.loading.checks import AdapterChecks, check_tensors
from server.adapters.loading.overflow import check_update
from server.adapters.memory.matrices import BasisSource, StoredMatrices
from server.adapters.methods.basis_id import NO_BASIS
from server.adapters.methods.checked_adapter import CheckedAdapter
from server.adapters.methods.method_kind import PeftForm
from server.adapters.methods.peft.incoming import (
    Imported,
    IncomingCheckpoint,
    Origin,
    targets_of,
)
from server.adapters.methods.peft.outgoing import PeftCheckpoint, as_lora
from server.adapters.methods.registry import kind_named, methods_by_name
from server.adapters.porting.held_exports import HeldExports
from server.adapters.porting.merged import write_merged
from server.bases.model import BaseModel
from server.control_characters import visible
from server.errors import InvalidRequest, QueueFull

Room = Callable[[str, str, int], AbstractContextManager[None]]

FORMATS: Final = ("peft", "peft-lora", "merged")

_LEAST_BYTES = 2**28  # for exports on the disk; or twice the base model, if that is more
_MAX_AT_ONCE = 4  # the one that runs, and those that wait
_MAX_WAIT_S = 60.0
_RETRY_AFTER_S = 30.0
_MOST_SHOWN = 200  # characters of what a checkpoint says about itself
_CARD = """# How to ask

This adapter was trained on chats without a default system prompt. If the base's chat template
writes one in front of a chat that has no system message, ask with a copy of the template that does
not: `--chat-template` of vLLM, `chat_template` of transformers' tokenizers.
"""


class PortingService:
    """Imports into `store`, exports from it, for one base. Thread-safe.

    Args:
        source: what the base was loaded from, as in `load_base`; merged exports read it again.
        folder: for temporary files; other processes may use it as well.
        room: entered with owner, name and bytes while an adapter comes in; may refuse it.
    """

    def __init__(
        self,
        base: BaseModel,
        store: AdapterStore,
        source: str,
        folder: Path,
        *,
        max_rank: int,
        room: Room = lambda _owner, _name, _size: nullcontext(),
    ) -> None:
        self._base = base
        self._store = store
        self._source = source
        self._folders = WorkFolders(folder)
        self._max_rank = max_rank
        self._room = room
        self._exports = HeldExports(max(_LEAST_BYTES, 2 * _bytes_of(base)))
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(_MAX_AT_ONCE)

    def import_adapter(
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
            file_name: the sender's name of `weights`.
            torch_era, half_dtype, base_dtype: see `Origin`.

        Raises:
            InvalidCheckpoint, InvalidAdapter, InvalidRequest, InvalidName: it cannot be imported;
                nothing of it is kept.
            QuotaExceeded: the owner has as much as it may have.
            QueueFull: too many imports and exports wait.
        """
        check_name("adapter", name)
        check_file_name(file_name)
        origin = Origin(torch_era, half_dtype, base_dtype)
        parsed = parse_config(config.read(MAX_CONFIG_BYTES + 1), [*_forms()])
        with self._one_at_a_time(), self._folders.using() as folder:
            path = folder / WEIGHTS_NAME
            with path.open("xb") as file:
                shutil.copyfileobj(weights, file)
            with self._room(owner, name, path.stat().st_size):
                pass  # refused before the work, and before its matrices are kept
            with open_tensors(path) as tensors:
                incoming = IncomingCheckpoint(self._base, parsed, tensors, origin, self._max_rank)
                imported = _forms()[parsed.kind].read(incoming)
            targets = targets_of(imported.tensors)
            check_tensors(imported.method, self._base, targets, imported.rank, imported.tensors)
            self._check_update(imported, targets)
            manifest = self._manifest(parsed, imported)
            return self._store.publish(
                owner,
                name,
                manifest,
                imported.tensors,
                imported.basis,
                room=partial(self._room, owner, name),
            )

    def copy_adapter(self, ref: AdapterRef, owner: str, name: str) -> AdapterRef:
        """Publish an adapter as the next version of `owner`'s `name`. Of where it comes from, the
        copy tells only the adapter: its jobs and files may be another owner's.

        Raises:
            AdapterNotFound, AdapterCorrupt: it cannot be read.
            QueueFull: too many imports and exports wait.
        """
        with self._one_at_a_time():
            manifest, tensors, _ = self._store.load(ref)
            basis = None
            if manifest.basis_spec == STORED_BASIS:
                basis = self._store.imported_bases.read(manifest.basis_sha256)
            origin = {"copied_from": ref.id_for(owner)}
            copied = replace(manifest, created_at=int(time.time()), provenance=origin)
            room = partial(self._room, owner, name)
            return self._store.publish(owner, name, copied, tensors, basis, room=room)

    def export_adapter(self, ref: AdapterRef, form: str, *, owner: str | None = None) -> Path:
        """A new folder that holds an adapter as one of `FORMATS`. The caller must `release` it.

        Args:
            owner: who asks, if that is not the adapter's owner: it counts among theirs.

        Raises:
            InvalidRequest: there is no such format, or it cannot express the adapter.
            InvalidAdapter: the adapter is of another base.
            AdapterNotFound, AdapterCorrupt: it cannot be read.
            UnsupportedModel: the base's files cannot be read again.
            QueueFull: too many imports and exports wait, or too many exports were not released.
        """
        if form not in FORMATS:
            raise InvalidRequest(f"format {form!r} is none of {', '.join(FORMATS)}", param="format")
        size = _bytes_of(self._base) if form == "merged" else 0
        with disk.system_errors():
            folder = self._folders.make()
        try:
            self._exports.enter(folder, owner or ref.owner, size)
            with self._one_at_a_time(), disk.system_errors():
                adapter = self._open(ref)
                if form == "merged":
                    write_merged(adapter, self._source, folder)
                else:
                    checkpoint = _peft_checkpoint(adapter, form)
                    write_folder(folder, checkpoint.config, checkpoint.tensors)
                if not adapter.manifest.default_prompt:
                    (folder / "README.md").write_text(_CARD, encoding="utf-8")
        except BaseException:
            self.release(folder)
            raise
        self._exports.resize(folder, sum(path.stat().st_size for path in folder.iterdir()))
        return folder

    def release(self, folder: Path) -> None:
        """Remove an export, and make room for another."""
        shutil.rmtree(folder, ignore_errors=True)
        self._exports.leave(folder)

    def _check_update(self, imported: Imported, targets: tuple[str, ...]) -> None:
        basis = imported.basis or {"a": torch.ones(1, 1), "b": torch.ones(1, 1)}
        check_update(
            imported.method,
            self._base,
            targets,
            imported.rank,
            imported.scale,
            imported.tensors,
            lambda path: StoredMatrices(basis["a"], basis["b"]),
            float(basis["a"].abs().max()) * float(basis["b"].abs().max()),
        )

    def _manifest(self, config: PeftConfig, imported: Imported) -> Manifest:
        provenance = {
            "imported_from": f"PEFT {config.kind}",
            "peft_version": config.text("peft_version"),
            "peft_base": config.text("base_model_name_or_path"),
        }
        has_basis = imported.basis is not None
        return Manifest(
            method=imported.method.name,
            rank=imported.rank,
            scale=imported.scale,
            seed=0,
            basis_spec=STORED_BASIS if has_basis else NO_BASIS,
            basis_sha256="" if imported.basis is None else basis_sha256(imported.basis),
            base_name=self._base.name,
            base_fingerprint=self._base.fingerprint,
            targets=targets_of(imported.tensors),
            created_at=int(time.time()),
            options=dict(imported.method.options),
            provenance={k: visible(v[:_MOST_SHOWN]) for k, v in provenance.items() if v}
            | dict(imported.provenance),
        )

    def _open(self, ref: AdapterRef) -> CheckedAdapter:
        source = BasisSource(self._base, self._store.imported_bases)
        return AdapterChecks(self._base, source, self._max_rank).checked(self._store.read(ref))

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        # A request that waits occupies a thread of the HTTP side, which has few.
        if not self._places.acquire(blocking=False):
            raise QueueFull(
                f"{_MAX_AT_ONCE} imports and exports are running or waiting: try again in "
                f"{_RETRY_AFTER_S:.0f} seconds",
                retry_after_s=_RETRY_AFTER_S,
            )
        try:
            if not self._turn.acquire(timeout=_MAX_WAIT_S):
                raise QueueFull(
                    f"another import or export is still running after {_MAX_WAIT_S:.0f} seconds: "
                    f"try again in {_RETRY_AFTER_S:.0f} seconds",
                    retry_after_s=_RETRY_AFTER_S,
                )
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._places.release()


def _forms() -> dict[str, PeftForm]:
    """PEFT's forms of the methods, by `peft_type`."""
    forms = [kind.peft for kind in methods_by_name().values() if kind.peft is not None]
    return {form.peft_type: form for form in forms}


def _peft_checkpoint(adapter: CheckedAdapter, form: str) -> PeftCheckpoint:
    """As "peft-lora", or as "peft": PEFT's own form of the method if it has one, else a LoRA."""
    name = adapter.method.name
    own = kind_named(name).peft
    if form == "peft" and own is not None and own.write is not None:
        return own.write(adapter)
    checkpoint = as_lora(adapter)
    if checkpoint is not None:
        return checkpoint
    others = "merged" if own is None else "peft or merged"
    raise InvalidRequest(
        f"an update of method {name!r} is no product of two thin matrices, as a LoRA is: "
        f"export it as {others}",
        param="format",
    )


def _bytes_of(base: BaseModel) -> int:
    return sum(weight.numel() * weight.element_size() for weight in base.model.parameters())
