"""The fused decoder under a step: replayed where the step is decodes alone, else as one flat batch.

For CUDA; `server.engine.forward.PlainForward` is its reference.
"""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from server.adapters.fused import FusedAdapters, Inputs
from server.adapters.plan import FusedPlan
from server.adapters.residency import ResidentAdapters
from server.adapters.site_parts import Parts
from server.engine import prefill
from server.engine.decoder import Attend, FusedDecoder, NoAdapters, SiteAdapters
from server.engine.flight import Wanted
from server.engine.forward import refuse_slots, run_flat
from server.engine.graphs import DecodeGraphs, decodes
from server.engine.kernels.gate import silu_mul
from server.engine.kv_cache import KVCache
from server.engine.layout import Layout
from server.engine.prefill import Prompts
from server.engine.sequence import Chunk
from server.engine.transfer import to_device

_BASE_ALONE = FusedPlan((), (), {})


class FusedForward:
    """Runs `decoder`; see `server.engine.forward.Forward`.

    Args:
        graphs: replays decodes; None: every step is a flat batch.
    """

    def __init__(
        self,
        decoder: FusedDecoder,
        adapters: ResidentAdapters | None,
        kv: KVCache,
        graphs: DecodeGraphs | None,
    ) -> None:
        self._decoder = decoder
        self._adapters = adapters
        self._kv = kv
        self._graphs = graphs
        self._parts = Parts()

    def step(self, chunks: Seq[Chunk], last: Tensor) -> tuple[Wanted, Tensor]:
        graphs = self._graphs
        if graphs is None or not graphs.takes(chunks):
            return run_flat(self, chunks, last, self._kv)
        plan = self._plan([chunk.sequence.slot for chunk in chunks], replayed=True)
        wanted = Wanted(chunks, range(len(chunks)))
        logits = graphs.logits(chunks, last, plan)
        if wanted.rows != list(range(len(chunks))):
            logits = logits[to_device(wanted.rows, torch.int64, self._kv.device)]
        return wanted, logits

    def logits(self, layout: Layout, rows: Seq[int]) -> Tensor:
        hidden = self._decoder.hidden(
            layout.token_ids,
            layout.positions,
            layout.places,
            self._kv,
            self._attend(layout),
            self._site_adapters(self._plan(layout.slots, replayed=False)),
        )
        return self._decoder.logits(hidden[to_device(rows, torch.int64, self._kv.device)])

    def _plan(self, slots: Seq[int], *, replayed: bool) -> FusedPlan:
        if self._adapters is None:
            refuse_slots(slots)
            return _BASE_ALONE
        return self._adapters.plan(slots, replayed=replayed)

    def _site_adapters(self, plan: FusedPlan) -> SiteAdapters:
        if self._adapters is None or not (plan.groups or plan.rest):
            return NoAdapters()
        inputs = [
            Inputs.of(group, pages, self._kv.device)
            for group, pages in zip(plan.groups, plan.pages, strict=True)
        ]
        bank, targets = self._adapters.bank, self._adapters.targets
        return FusedAdapters(plan.groups, inputs, plan.rest, bank, targets, silu_mul, self._parts)

    def _attend(self, layout: Layout) -> Attend:
        """Single tokens stand first in a layout, then longer chunks."""
        singles, kv, decoder = layout.num_singles, self._kv, self._decoder
        long = layout.chunks[singles:]
        prompts = Prompts.of(long, kv) if long else None
        tables, lengths = layout.decode_tables()
        decode = decodes(decoder, kv, tables, lengths)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            parts = []
            if singles:
                parts.append(decode(layer, q[:singles], k[:singles], v[:singles]))
            if prompts is not None:
                own = (q[singles:], k[singles:], v[singles:])
                window, scaling = decoder.windows[layer], decoder.scaling
                parts.append(
                    prefill.attend(*own, prompts, kv, layer, scaling=scaling, window=window)
                )
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return attend
