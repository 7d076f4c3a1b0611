"""Runs a step over the fused decoder: one graph, a graph of decodes and one of prompts, or none.

For CUDA; its reference is `server.engine.plain.forward.PlainForward`. Knows no queue, no sampling.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate, chain, islice

import torch
from torch import Tensor

from server.adapters.batch.fused_plan import FusedPlan
from server.adapters.residency import ResidentAdapters
from server.engine.device import to_device
from server.engine.fused import prefill_attention
from server.engine.fused.decode_graphs import DecodeGraphs, attend_decodes
from server.engine.fused.decoder import Attend, FusedDecoder, NoAdapters, SiteAdapters
from server.engine.fused.prefill_attention import PackedPrompts
from server.engine.fused.prompt_graphs import PromptGraphs
from server.engine.kernels.mlp_gate import gate_mul
from server.engine.kv_cache import KVCache
from server.engine.launched_step import LogitRows
from server.engine.plain.forward import refuse_slots, run_flat
from server.engine.plain.token_layout import Layout
from server.engine.sequence import Chunk

_BASE_ALONE = FusedPlan((), (), {})


@dataclass(eq=False)
class FusedForward:
    """Runs `decoder`; see `server.engine.plain.forward.Forward`.

    Args:
        decodes, prompts: replay the steps that they can; None: such steps are a flat batch.
        together: replay short prompts in the graphs of decodes, where they fit.
    """

    _decoder: FusedDecoder
    _adapters: ResidentAdapters | None
    _kv: KVCache
    _decodes: DecodeGraphs | None = None
    prompts: PromptGraphs | None = None
    together: bool = True

    def step(self, chunks: Seq[Chunk], last: Tensor) -> tuple[LogitRows, Tensor]:
        singles = [chunk for chunk in chunks if chunk.length == 1]
        longer = [chunk for chunk in chunks if chunk.length > 1]
        ordered = [*singles, *longer]
        if self._adapters is not None:
            self._adapters.steps.begin(_slots_of(ordered))
        logit_rows = LogitRows(ordered, [0, *accumulate(chunk.length for chunk in ordered)][:-1])
        replayed = self._replayed(singles, longer, logit_rows, last)
        if replayed is None:
            return run_flat(self, chunks, last, self._kv)
        return logit_rows, replayed

    def _replayed(
        self, singles: Seq[Chunk], longer: Seq[Chunk], logit_rows: LogitRows, last: Tensor
    ) -> Tensor | None:
        """Logits of these rows by graphs; None if the step cannot be replayed."""
        if longer and logit_rows.scored:
            return None
        logits = self._in_one_graph(singles, longer, last)
        if logits is None:
            logits = self._in_two_graphs(singles, longer, last)
        if logits is None:
            return None
        rows = _rows_of_chunks(logit_rows, singles, longer)
        if rows == list(range(len(logits))):
            return logits
        return logits[to_device(rows, torch.int64, self._kv.device)]

    def _in_one_graph(self, singles: Seq[Chunk], longer: Seq[Chunk], last: Tensor) -> Tensor | None:
        """Logits of each chunk's last token by a graph of decodes; None if it cannot."""
        if self._decodes is None or not self._decodes.can_replay(singles, longer):
            return None
        if longer and not self.together:
            return None
        chunks = [*singles, *longer]
        plan = self._plan(_slots_of(chunks), replayed=True)
        # Without kernels a method gathers its vectors for every token by itself.
        if longer and any(group.without_kernels is not None for group in plan.groups):
            return None
        return self._decodes.logits(chunks, last, plan)

    def _in_two_graphs(
        self, singles: Seq[Chunk], longer: Seq[Chunk], last: Tensor
    ) -> Tensor | None:
        """The same by a graph of decodes, and then one of prompts."""
        if self.prompts is None or not longer or not self.prompts.can_replay(longer):
            return None
        plan = self._plan(_slots_of(longer), replayed=False)
        if plan.rest:
            return None
        if not singles:
            return self.prompts.logits(longer, plan)
        decoded = self._in_one_graph(singles, (), last)
        if decoded is None:
            return None
        # A copy: the next replay may overwrite them.
        return torch.cat([decoded.clone(), self.prompts.logits(longer, plan)])

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
        return self._adapters.steps.plan(slots, replayed=replayed)

    def _site_adapters(self, plan: FusedPlan) -> SiteAdapters:
        if self._adapters is None or not (plan.groups or plan.rest):
            return NoAdapters()
        return self._adapters.steps.site_adapters(plan, gate_mul)

    def _attend(self, layout: Layout) -> Attend:
        """Single tokens stand first in a layout, then longer chunks."""
        singles, kv, decoder = layout.num_singles, self._kv, self._decoder
        long = layout.chunks[singles:]
        prompts = PackedPrompts.of(long, kv) if long else None
        tables, lengths = layout.decode_tables()
        decode = attend_decodes(decoder, kv, tables, lengths)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            parts = []
            if singles:
                parts.append(decode(layer, q[:singles], k[:singles], v[:singles]))
            if prompts is not None:
                own = (q[singles:], k[singles:], v[singles:])
                window, scaling = decoder.windows[layer], decoder.scaling
                parts.append(
                    prefill_attention.attend(
                        *own, prompts, kv, layer, scaling=scaling, window=window
                    )
                )
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return attend


def _slots_of(chunks: Seq[Chunk]) -> list[int]:
    """The slot of each token."""
    return list(chain.from_iterable([it.sequence.slot] * it.length for it in chunks))


def _rows_of_chunks(logit_rows: LogitRows, singles: Seq[Chunk], longer: Seq[Chunk]) -> list[int]:
    """The chunk whose last token each row is: graphs give one row for each chunk."""
    ends = accumulate((chunk.length for chunk in longer), initial=len(singles))
    chunk_of = {end - 1: len(singles) + number for number, end in enumerate(islice(ends, 1, None))}
    return [row if row < len(singles) else chunk_of[row] for row in logit_rows.rows]
