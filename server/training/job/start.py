"""Makes the adapter that a job begins with: a new one, or one with another adapter's vectors."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from adapters_store.manifest import AdapterRef, Manifest, parse_adapter_id, split_owner
from adapters_store.store import AdapterStore
from adapters_store.store_errors import AdapterNotFound, InvalidName
from server.adapters.learning.targets import resolve_targets
from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.memory.matrices import SharedBases
from server.adapters.methods.registry import kind_named
from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.errors import InvalidRequest
from server.jobs.queue import continuing
from server.jobs.queue.job import Job
from server.training.run.defaults import TrainPlan


@dataclass(frozen=True, eq=False)
class Start:
    """A published adapter that a job continues from."""

    ref: AdapterRef
    manifest: Manifest
    tensors: Mapping[str, Tensor]


MayCopy = Callable[[str, str, str], bool]
"""Whether an owner may copy the adapter of an owner, by its name."""


def start_of(job: Job, store: AdapterStore, served_name: str, may_copy: MayCopy) -> Start | None:
    """What the job's `model` names: None for the base.

    Raises:
        InvalidRequest: neither the base nor a version of an adapter.
        AdapterNotFound, AdapterCorrupt: it is gone, damaged, or no longer shared with the owner.
    """
    if job.model == served_name:
        return None
    try:
        of, rest = split_owner(job.model)
        name, version = parse_adapter_id(rest)
    except InvalidName:
        of, name, version = None, job.model, None
    if version is None:
        raise InvalidRequest(
            f"model {job.model!r} cannot be trained: name {served_name!r}, the base of this "
            "worker, or a version of an adapter, NAME@VERSION",
            param="model",
        )
    if not may_copy(job.owner, of or job.owner, name):
        raise AdapterNotFound(f"the adapter {job.model!r} is gone, or no longer shared with you")
    ref = store.resolve(of or job.owner, name, version)
    manifest, tensors, _ = store.load(ref)
    return Start(ref, manifest, tensors)


def adapter_for(
    job: Job, plan: TrainPlan, base: BaseModel, start: Start | None, shared: SharedBases | None
) -> TrainableAdapter:
    """The adapter with the vectors that the job begins with.

    Raises:
        InvalidRequest: options or targets that do not fit the base, or contradict the start.
        InvalidAdapter: a start whose vectors this build cannot read.
    """
    if start is None:
        return TrainableAdapter(
            base,
            plan.method,
            rank=plan.rank,
            seed=plan.basis_seed,
            targets=plan.targets,
            options=adapter_options(plan, base),
            shared=shared,
        )
    manifest = start.manifest
    continuing.check_continuable(str(start.ref), manifest, base.fingerprint)
    if job.hyperparameters.targets is not None:
        targets = resolve_targets(base, job.hyperparameters.targets)
        continuing.check_targets(str(start.ref), manifest, targets)
    spec = kind_named(manifest.method).spec
    adapter = TrainableAdapter(
        base,
        manifest.method,
        rank=manifest.rank,
        seed=manifest.seed,
        targets=manifest.targets,
        options=continuing.adapter_options(manifest, job.hyperparameters, spec),
        shared=shared,
    )
    _check_like(adapter.manifest(created_at=int(time.time()), provenance={}), start)
    adapter.load_tensors(start.tensors)
    return adapter


def asked_by(tokenizer: ChatTokenizer, manifest: Manifest | None) -> ChatTokenizer:
    """The tokenizer as an adapter's chats are written with it.

    Args:
        manifest: of the adapter to continue; None: a new one has no default prompt.
    """
    kept = manifest is not None and manifest.default_prompt
    return tokenizer if kept else tokenizer.without_default_prompt()


def adapter_options(plan: TrainPlan, base: BaseModel) -> Mapping[str, float | str]:
    """The method's options, those that depend on the targeted linears settled for this base.

    Raises:
        InvalidRequest: targets that this base does not have.
    """
    linears = [base.targets[path] for path in resolve_targets(base, plan.targets)]
    return kind_named(plan.method).settled(plan.adapter_options(), linears)


def _check_like(new: Manifest, start: Start) -> None:
    """Raise InvalidRequest unless the new adapter reads the same matrices at the same scale."""
    own = start.manifest
    same_basis = (new.basis_spec, new.basis_sha256) == (own.basis_spec, own.basis_sha256)
    if not same_basis or abs(new.scale - own.scale) > 1e-6 * own.scale:
        raise InvalidRequest(
            f"adapter {start.ref} reads matrices {own.basis_spec!r} at scale {own.scale:g}, where "
            f"new ones read {new.basis_spec!r} at {new.scale:g}: train a new one from the base",
            param="model",
        )
