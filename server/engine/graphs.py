"""Decode steps as CUDA graphs: one for each padded number of rows and each kind of company.

A step whose chunks are all single tokens is replayed: its inputs are copied to fixed addresses and
one launch runs the whole model. Knows no sampling and no scheduling.
"""

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from server.adapters.fused import FusedAdapters, Inputs, refill
from server.adapters.plan import FusedGroup, FusedPlan
from server.adapters.residency import ResidentAdapters
from server.adapters.site_parts import Parts
from server.engine.decoder import Attend, FusedDecoder, NoAdapters, SiteAdapters
from server.engine.kernels.decode_attention import decode_attention
from server.engine.kernels.gate import silu_mul
from server.engine.kv_cache import KVCache
from server.engine.sequence import Chunk

MOST_GRAPHS: Final = 256
"""Kept at once; the one replayed longest ago goes first. Each is some hundred kB of launches."""


def padded_sizes(max_rows: int) -> list[int]:
    """The numbers of rows that are captured: at most a quarter of a step is padding from 8 on."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, max_rows + 32, 32)]
    fitting = [size for size in sizes if size < max_rows]
    return [*fitting, max_rows]


@dataclass(frozen=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Seq[Inputs]
    logits: Tensor


class _Fixed:
    """What captured steps of so many rows read, at addresses that stay."""

    def __init__(self, rows: int, max_blocks: int, device: torch.device) -> None:
        self.numbers = torch.zeros(5, rows, dtype=torch.int64, device=device)
        self.ids, self.positions, self.places, self.lengths, self.sources = self.numbers.unbind()
        self.tables = torch.zeros(rows, max_blocks, dtype=torch.int32, device=device)


class DecodeGraphs:
    """Graphs over `decoder`, captured as they are first wanted, or ahead by `capture`.

    Args:
        adapters: whose vectors are read; None: the base alone is served.
        max_context: of a sequence, in tokens.
    """

    def __init__(
        self,
        decoder: FusedDecoder,
        kv: KVCache,
        adapters: ResidentAdapters | None,
        *,
        max_rows: int,
        max_context: int,
    ) -> None:
        self._decoder = decoder
        self._kv = kv
        self._adapters = adapters
        self._parts = Parts()
        self._sizes = padded_sizes(max_rows)
        self._max_blocks = -(-max_context // kv.block_tokens)
        self._fixed = {rows: _Fixed(rows, self._max_blocks, kv.device) for rows in self._sizes}
        self._tables = _Tables(max_rows, self._max_blocks)
        self._last = torch.zeros(max_rows, dtype=torch.int64, device=kv.device)
        self._graphs: OrderedDict[tuple[int, tuple[FusedGroup, ...]], _Captured] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def takes(self, chunks: Seq[Chunk]) -> bool:
        """Whether a step of these can be replayed."""
        return len(chunks) <= self._sizes[-1] and all(chunk.length == 1 for chunk in chunks)

    def logits(self, chunks: Seq[Chunk], last: Tensor | None, plan: FusedPlan) -> Tensor:
        """Replay one step: logits [rows, vocab] in the order of `chunks`, until the next replay.

        Args:
            last: int64, the tokens that the step before sampled, from which pending ones are taken.
        """
        rows = next(size for size in self._sizes if size >= len(chunks))
        captured = self._graph(rows, plan.groups)
        fixed = self._fixed[rows]
        self._fill(fixed, chunks)
        if last is not None:
            self._last[: len(last)].copy_(last)
        for inputs, pages in zip(captured.inputs, plan.pages, strict=True):
            inputs.fill(pages)
        captured.graph.replay()
        return captured.logits[: len(chunks)]

    def capture(
        self, groups: Seq[tuple[FusedGroup, ...]], progress: Callable[[int, int], None]
    ) -> None:
        """Capture every size for each company of groups, largest first; tells how far it is."""
        wanted = [(rows, company) for company in groups for rows in reversed(self._sizes)]
        for done, (rows, company) in enumerate(wanted):
            progress(done, len(wanted))
            self._graph(rows, company)
        progress(len(wanted), len(wanted))

    def _fill(self, fixed: _Fixed, chunks: Seq[Chunk]) -> None:
        size, count = self._kv.block_tokens, len(chunks)
        numbers = np.zeros((5, fixed.numbers.shape[1]), dtype=np.int64)
        numbers[2] = self._kv.sink
        numbers[4] = -1
        width = 1
        for row, chunk in enumerate(chunks):
            sequence = chunk.sequence
            position, blocks = sequence.num_computed, sequence.blocks
            numbers[1, row] = position
            numbers[2, row] = blocks[position // size] * size + position % size
            self._tables.put(row, blocks)
            width = max(width, position // size + 1)
            if sequence.pending:
                numbers[4, row] = sequence.source
            else:
                numbers[0, row] = sequence.tokens(position, position + 1)[0]
        numbers[3, :count] = numbers[1, :count] + 1
        refill(fixed.numbers, numbers)
        refill(
            fixed.tables[:count, :width], np.ascontiguousarray(self._tables.rows[:count, :width])
        )

    def _graph(self, rows: int, groups: tuple[FusedGroup, ...]) -> _Captured:
        found = self._graphs.get((rows, groups))
        if found is None:
            found = self._graphs[rows, groups] = self._capture(rows, groups)
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end((rows, groups))
        return found

    @torch.inference_mode()
    def _capture(self, rows: int, groups: tuple[FusedGroup, ...]) -> _Captured:
        device = self._kv.device
        inputs = [Inputs(group, rows, rows, device) for group in groups]
        fixed = self._fixed[rows]
        fixed.places.fill_(self._kv.sink)
        fixed.lengths.zero_()
        fixed.sources.fill_(-1)
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            # Once outside of the graph: kernels are compiled and products choose their algorithm.
            self._run(fixed, groups, inputs)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                logits = self._run(fixed, groups, inputs)
            finally:
                graph.capture_end()
        torch.cuda.synchronize()
        return _Captured(graph, inputs, logits)

    def _run(self, fixed: _Fixed, groups: tuple[FusedGroup, ...], inputs: Seq[Inputs]) -> Tensor:
        adapters: SiteAdapters = NoAdapters()
        if groups:
            resident = self._adapters
            assert resident is not None
            adapters = FusedAdapters(
                groups, inputs, {}, resident.bank, resident.targets, silu_mul, self._parts
            )
        ids = torch.where(fixed.sources < 0, fixed.ids, self._last[fixed.sources.clamp(min=0)])
        attend = decodes(self._decoder, self._kv, fixed.tables, fixed.lengths.to(torch.int32))
        hidden = self._decoder.hidden(
            ids, fixed.positions, fixed.places, self._kv, attend, adapters
        )
        return self._decoder.logits(hidden)


def decodes(decoder: FusedDecoder, kv: KVCache, tables: Tensor, lengths: Tensor) -> Attend:
    """Attention of rows of one token each.

    Args:
        tables: int32 [rows, most blocks]; lengths: int32 [rows], keys of each, its own included.
    """

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = kv.layers[layer]
        window = decoder.windows[layer]
        return decode_attention(q, keys, values, tables, lengths, decoder.scaling, window)

    return attend


class _Tables:
    """The blocks of each row on the host, kept from step to step: rows mostly stay as they are."""

    def __init__(self, max_rows: int, max_blocks: int) -> None:
        self.rows = np.zeros((max_rows, max_blocks), dtype=np.int32)
        self._lists: list[list[int] | None] = [None] * max_rows
        self._known = [0] * max_rows

    def put(self, row: int, blocks: list[int]) -> None:
        """Row `row` has these blocks. A list only ever grows; one that lost blocks is another."""
        known = self._known[row] if self._lists[row] is blocks else 0
        if known < len(blocks):
            self.rows[row, known : len(blocks)] = blocks[known:]
        self._lists[row] = blocks
        self._known[row] = len(blocks)
