"""Runs a step's chunks through transformers' own forward, and defines what a forward is.

The fused forward gives the same logits up to rounding; this one is the reference, and runs any
model on any device. Knows no queue and no sampling.
"""

from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from server.adapters.residency import ResidentAdapters
from server.bases.model import BaseModel
from server.engine.device import to_device
from server.engine.kv_cache import KVCache
from server.engine.launched_step import LogitRows
from server.engine.plain.attention import attending
from server.engine.plain.token_layout import Layout
from server.engine.sequence import Chunk
from server.errors import UnsupportedModel


class Forward(Protocol):
    """Runs chunks. Call it within `torch.inference_mode`."""

    def step(self, chunks: Seq[Chunk], last: Tensor) -> tuple[LogitRows, Tensor]:
        """The rows that need logits, and those logits [rows, vocab].

        Args:
            last: int64, the tokens that the step before sampled; it has the pending ones.
        """
        ...

    def logits(self, layout: Layout, rows: Seq[int]) -> Tensor:
        """Logits [rows, vocab] of the given rows of the flat batch."""
        ...


class PlainForward:
    """`base`'s own forward, its attention the engine's, its linears with `adapters`."""

    def __init__(self, base: BaseModel, adapters: ResidentAdapters | None, kv: KVCache) -> None:
        self._model = base.model
        self._name = base.name
        self._adapters = adapters
        self._kv = kv

    def step(self, chunks: Seq[Chunk], last: Tensor) -> tuple[LogitRows, Tensor]:
        return run_flat(self, chunks, last, self._kv)

    def logits(self, layout: Layout, rows: Seq[int]) -> Tensor:
        with self._adapted(layout.slots), attending(layout):
            output = self._model(
                input_ids=layout.token_ids[None],
                position_ids=layout.positions[None],
                use_cache=False,
                logits_to_keep=to_device(rows, torch.int64, self._kv.device),
            )
        if not layout.windows:
            raise UnsupportedModel(
                f"base model {self._name!r} ({self._model.config.model_type}) computes attention "
                "in code of its own, which would mix the answers of a step: give one that uses "
                "transformers' attention interface, as Llama, Qwen and Gemma do"
            )
        logits: Tensor = output.logits[0]
        return logits

    def _adapted(self, slots: Seq[int]) -> AbstractContextManager[None]:
        if self._adapters is None:
            refuse_slots(slots)
            return nullcontext()
        return self._adapters.use(self._adapters.steps.batch(slots))


def run_flat(
    forward: Forward, chunks: Seq[Chunk], last: Tensor, kv: KVCache
) -> tuple[LogitRows, Tensor]:
    """A step as one flat batch of all its tokens; see `Forward.step`."""
    layout = Layout(chunks, kv)
    logit_rows = LogitRows(layout.chunks, layout.starts)
    if logit_rows.pending:
        places = to_device(list(chain.from_iterable(logit_rows.pending)), torch.int64, kv.device)
        rows, sources = places.view(-1, 2).T
        layout.token_ids[rows] = last[sources]
    return logit_rows, forward.logits(layout, logit_rows.rows)


def refuse_slots(slots: Seq[int]) -> None:
    """Raises ValueError if a slot is an adapter's: there are no adapters."""
    if any(slots):
        raise ValueError("a sequence has an adapter's slot, but this Runner has no adapters")
