"""The adapter that a job begins with: a new one, or another's vectors to go on from."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from adapters_store.manifest import AdapterRef, Manifest, parse_adapter_id
from adapters_store.store import AdapterStore
from adapters_store.store_errors import InvalidName
from server.adapters.learning.targets import resolve_targets
from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.memory.matrices import SharedBases
from server.adapters.methods.randlora import sqrt_sparsity
from server.bases.model import BaseModel
from server.errors import InvalidRequest
from server.jobs.queue import continuing
from server.jobs.queue.job import Job
from server.training.run.defaults import TrainPlan


@dataclass(frozen=True, eq=False)
class Start:
    """An adapter to go on from."""

    ref: AdapterRef
    manifest: Manifest
    tensors: Mapping[str, Tensor]


def start_of(job: Job, store: AdapterStore, served_name: str) -> Start | None:
    """What the job's `model` names: None for the base.

    Raises:
        InvalidRequest: neither the base nor a version of an adapter.
        AdapterNotFound, AdapterCorrupt: it is gone or damaged.
    """
    if job.model == served_name:
        return None
    try:
        name, version = parse_adapter_id(job.model)
    except InvalidName:
        name, version = job.model, None
    if version is None:
        raise InvalidRequest(
            f"model {job.model!r} cannot be trained: this worker goes on from {served_name!r}, "
            "its base, or from an adapter, NAME@VERSION",
            param="model",
        )
    ref = store.resolve(job.owner, name, version)
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
        wanted = resolve_targets(base, job.hyperparameters.targets)
        continuing.check_targets(str(start.ref), manifest, wanted)
    adapter = TrainableAdapter(
        base,
        manifest.method,
        rank=manifest.rank,
        seed=manifest.seed,
        targets=manifest.targets,
        options=continuing.adapter_options(manifest, job.hyperparameters),
        shared=shared,
    )
    _check_like(adapter.manifest(created_at=int(time.time()), provenance={}), start)
    adapter.load_tensors(start.tensors)
    return adapter


def adapter_options(plan: TrainPlan, base: BaseModel) -> dict[str, float | str]:
    """What the method is told; a sparsity of "sqrt" becomes the number that it means here.

    Raises:
        InvalidRequest: targets that this base does not have.
    """
    options = plan.adapter_options()
    if plan.sparsity == "sqrt":
        targets = resolve_targets(base, plan.targets)
        options["sparsity"] = sqrt_sparsity(base.targets[path] for path in targets)
    return options


def _check_like(made: Manifest, start: Start) -> None:
    """What is made reads the same matrices at the same scale, or it is another adapter."""
    own = start.manifest
    mine = (made.basis_spec, made.basis_sha256)
    if mine != (own.basis_spec, own.basis_sha256) or abs(made.scale - own.scale) > 1e-6 * own.scale:
        raise InvalidRequest(
            f"adapter {start.ref} reads matrices {own.basis_spec!r} at scale {own.scale:g}, where "
            f"new ones read {made.basis_spec!r} at {made.scale:g}: train a new one from the base",
            param="model",
        )
