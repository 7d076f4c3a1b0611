"""What a run trains: an adapter of ours, the same one by PEFT, or the whole model.

Knows no data and no loop. Every learner changes the one model that it was built on.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from adapters_store.store import AdapterStore
from benchmarks.e2e.peft_learners import peft_groups, peft_model
from benchmarks.e2e.runs import Run
from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.methods.randlora import randlora
from server.bases.base_files import load_base
from server.bases.model import BaseModel

_OWNER, _NAME = "bench", "e2e"


@dataclass(frozen=True)
class Group:
    """Parameters whose learning rate is the run's times `factor`."""

    parameters: Sequence[nn.Parameter]
    factor: float = 1.0


@dataclass(frozen=True)
class Learner:
    """A model that learns. `active`: within it, the model answers as it has learnt; `bytes_at_rest`
    writes what a user would keep to a folder, and gives its size."""

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
    makers = {"ours": _ours, "peft": _peft, "full": _full}
    return makers[run.side](run, base)


@contextmanager
def gamma_starting_at(value: float | str | None) -> Iterator[None]:
    """Within it, new RandLoRA adapters have this start of gamma: a constant of the method, which is
    no option of an adapter."""
    usual = randlora.GAMMA_INITIAL
    try:
        vars(randlora)["GAMMA_INITIAL"] = usual if value is None else float(value)
        yield
    finally:
        vars(randlora)["GAMMA_INITIAL"] = usual


def _ours(run: Run, base: BaseModel) -> Learner:
    targets = run.targets[0] if len(run.targets) == 1 else run.targets
    options = dict(run.options)
    with gamma_starting_at(options.pop("gamma_initial", None)):
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

    with gamma_starting_at(dict(run.options).get("gamma_initial")):
        pairs = list(peft_groups(run, base, model))
    groups = [Group(parameters, factor) for parameters, factor in pairs]
    return Learner(base, groups, nullcontext, bytes_at_rest)


def _full(run: Run, base: BaseModel) -> Learner:
    base.model.requires_grad_(True)
    parameters = list(base.model.parameters())  # the tied embedding comes once

    def bytes_at_rest() -> int:
        named = {name: p.detach() for name, p in base.model.named_parameters()}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.safetensors"
            save_file(named, file)
            return file.stat().st_size

    return Learner(base, [Group(parameters)], nullcontext, bytes_at_rest)
