"""Decode steps as CUDA graphs: one for each padded number of rows and each kind of company.

A step whose chunks are all single tokens is replayed: its inputs are copied to fixed addresses and
one launch runs the whole model. Knows no sampling and no scheduling.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from server.adapters.fused import Inputs, refill
from server.adapters.plan import FusedGroup, FusedPlan
from server.engine.captures import Captured, Captures
from server.engine.decoder import Attend, FusedDecoder
from server.engine.kernels.decode_attention import decode_attention
from server.engine.kv_cache import KVCache
from server.engine.sequence import Chunk


def padded_sizes(max_rows: int) -> list[int]:
    """The numbers of rows that are captured: at most a quarter of a step is padding from 8 on."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, max_rows + 32, 32)]
    fitting = [size for size in sizes if size < max_rows]
    return [*fitting, max_rows]


class _Fixed:
    """What captured steps of so many rows read, at addresses that stay."""

    def __init__(self, rows: int, max_blocks: int, sink: int, device: torch.device) -> None:
        self.numbers = torch.zeros(5, rows, dtype=torch.int64, device=device)
        self.ids, self.positions, self.places, self.lengths, self.sources = self.numbers.unbind()
        self.tables = torch.zeros(rows, max_blocks, dtype=torch.int32, device=device)
        self._sink = sink

    def clear(self) -> None:
        """Padding alone."""
        self.numbers.zero_()
        self.places.fill_(self._sink)
        self.sources.fill_(-1)


class DecodeGraphs:
    """Graphs over `decoder`, captured as they are first wanted, or ahead by `capture`.

    Args:
        max_context: of a sequence, in tokens.
    """

    def __init__(
        self,
        decoder: FusedDecoder,
        kv: KVCache,
        captures: Captures,
        *,
        max_rows: int,
        max_context: int,
    ) -> None:
        self._decoder = decoder
        self._kv = kv
        self._captures = captures
        self._sizes = padded_sizes(max_rows)
        self._max_blocks = -(-max_context // kv.block_tokens)
        self._fixed = {
            rows: _Fixed(rows, self._max_blocks, kv.sink, kv.device) for rows in self._sizes
        }
        self._tables = _Tables(max_rows, self._max_blocks)
        self._last = torch.zeros(max_rows, dtype=torch.int64, device=kv.device)

    @property
    def sizes(self) -> Seq[int]:
        return self._sizes

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

    def capture(self, companies: Seq[tuple[FusedGroup, ...]], told: Callable[[], None]) -> None:
        """Capture every size for each company of groups, largest first; `told` after each."""
        for groups in companies:
            for rows in reversed(self._sizes):
                self._graph(rows, groups)
                told()

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

    def _graph(self, rows: int, groups: tuple[FusedGroup, ...]) -> Captured:
        fixed, device = self._fixed[rows], self._kv.device

        def prepare() -> list[Inputs]:
            fixed.clear()
            return [Inputs(group, rows, rows, device) for group in groups]

        key = ("decodes", rows, groups)
        return self._captures.find(key, prepare, lambda inputs: self._run(fixed, groups, inputs))

    def _run(self, fixed: _Fixed, groups: Seq[FusedGroup], inputs: Seq[Inputs]) -> Tensor:
        adapters = self._captures.adapters_of(groups, inputs)
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
