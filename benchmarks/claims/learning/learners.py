"""What a run trains: an adapter of ours, the same one by PEFT, or the whole model.

Knows no data and no loop. Every learner changes the one model that it was built on.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from adapters_store.store import AdapterStore
from benchmarks.claims.learning.peft_learners import peft_groups, peft_model
from benchmarks.claims.runs import Run
from server.adapters.learning.trainable import TrainableAdapter
from server.bases.base_files import load_base
from server.bases.model import BaseModel

_OWNER, _NAME = "bench", "claims"


@dataclass(frozen=True)
class Group:
    """Parameters whose learning rate is the run's times `factor`."""

    parameters: Sequence[nn.Parameter]
    factor: float = 1.0


@dataclass(frozen=True)
class Learner:
    """A model that learns. `active`: within it, the model answers as it has learnt. `bytes_at_rest`
    is the size of what a user would keep: an adapter's file, or a model's numbers as bfloat16."""

    base: BaseModel
    groups: Sequence[Group]
    active: Callable[[], AbstractContextManager[None]]
    bytes_at_rest: Callable[[], int]

    @property
    def trained(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for group in self.groups for p in group.parameters)


def build(run: Run, source: str, device: str) -> Learner:
    """A learner at its start, on a model of its own."""
    torch.manual_seed(run.seed)
    base = load_base(source, device=device, dtype=getattr(torch, run.dtype))
    makers = {"base": _untrained, "ours": _ours, "peft": _peft, "full": _full}
    return makers[run.side](run, base)


def _ours(run: Run, base: BaseModel) -> Learner:
    targets = run.targets[0] if len(run.targets) == 1 else run.targets
    options = dict(run.options)
    adapter = TrainableAdapter(base, run.method, run.rank, run.seed, targets, options)

    def bytes_at_rest() -> int:
        manifest = adapter.manifest(created_at=int(time.time()), provenance={})
        with tempfile.TemporaryDirectory() as folder:
            store = AdapterStore(Path(folder))
            ref = store.publish(_OWNER, _NAME, manifest, adapter.tensors())
            return store.open(ref).size_bytes

    return Learner(base, [Group(adapter.parameters())], adapter.active, bytes_at_rest)


def _peft(run: Run, base: BaseModel) -> Learner:
    model = peft_model(run, base)

    def bytes_at_rest() -> int:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return (Path(folder) / "adapter_model.safetensors").stat().st_size

    groups = [Group(parameters, factor) for parameters, factor in peft_groups(run, base, model)]
    return Learner(base, groups, nullcontext, bytes_at_rest)


def _untrained(run: Run, base: BaseModel) -> Learner:
    return Learner(base, [], nullcontext, lambda: 0)


def _full(run: Run, base: BaseModel) -> Learner:
    base.model.requires_grad_(True)
    parameters = list(base.model.parameters())  # the tied embedding comes once

    def bytes_at_rest() -> int:
        return sum(torch.bfloat16.itemsize * parameter.numel() for parameter in parameters)

    return Learner(base, [Group(parameters)], nullcontext, bytes_at_rest)
