"""Decode steps as CUDA graphs: one for each padded number of rows and each set of adapter groups.

To replay a step, its inputs are copied to fixed addresses, and one launch runs the whole model. A
row is one token. Short prompts join the step with a row for each of their tokens: each layer stores
the keys of all rows before its attention reads them from the cache. So a step that has both reads
the weights once. Knows no sampling and no scheduling.
"""

from collections.abc import Sequence as Seq
from itertools import accumulate
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.adapters.batch.fused_plan import FusedGroup, FusedPlan
from server.adapters.batch.group_inputs import GroupInputs, refill
from server.engine.fused.decoder import Attend, FusedDecoder
from server.engine.fused.graph_cache import CapturedGraph, GraphCache
from server.engine.kernels.decode_attention import decode_attention
from server.engine.kv_cache import KVCache
from server.engine.sequence import Chunk, Sequence

PROMPT_ROWS: Final = 256
"""Rows for the tokens of prompts, beyond one for each sequence."""
_MAX_PROMPT_READS: Final = 2**17
"""Keys that the rows of prompts may read together. Here each row reads its own; a prompt that is
replayed by itself reads them once for many tokens."""


def padded_sizes(max_rows: int, prompt_rows: int = 0) -> list[int]:
    """The numbers of rows that are captured. From 8 rows up to `max_rows`, at most a quarter of a
    step is padding."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, max_rows + 32, 32)]
    fitting = [size for size in sizes if size < max_rows]
    more = [size for size in (32, 64, 96, 128, 192) if size < prompt_rows]
    return [*fitting, max_rows, *(max_rows + size for size in (*more, prompt_rows) if size)]


class _DecodeInputs:
    """The inputs of captured steps of so many rows, at addresses that stay.

    Args:
        chunks: how many of them get logits, at most.
    """

    def __init__(
        self, rows: int, chunks: int, max_blocks: int, sink: int, device: torch.device
    ) -> None:
        self.numbers = torch.zeros(6, rows, dtype=torch.int64, device=device)
        numbers = self.numbers.unbind()
        self.ids, self.positions, self.places, self.lengths, self.sources = numbers[:5]
        self.ends = numbers[5][:chunks]
        self.tables = torch.zeros(rows, max_blocks, dtype=torch.int32, device=device)
        self._sink = sink

    def clear(self) -> None:
        """Make every row padding."""
        self.numbers.zero_()
        self.places.fill_(self._sink)
        self.sources.fill_(-1)


class DecodeGraphs:
    """Graphs over `decoder`, captured at first use, or ahead of it by `capture`.

    Args:
        max_rows: chunks of a step.
        max_context: of a sequence, in tokens.
        prompt_rows: further rows for prompts; 0: only chunks of one token are replayed.
    """

    def __init__(
        self,
        decoder: FusedDecoder,
        kv: KVCache,
        graphs: GraphCache,
        *,
        max_rows: int,
        max_context: int,
        prompt_rows: int = PROMPT_ROWS,
    ) -> None:
        self._decoder = decoder
        self._kv = kv
        self._graphs = graphs
        self._max_rows = max_rows
        self._sizes = padded_sizes(max_rows, prompt_rows)
        self._max_blocks = -(-max_context // kv.block_tokens)
        self._fixed = {
            rows: _DecodeInputs(rows, max_rows, self._max_blocks, kv.sink, kv.device)
            for rows in self._sizes
        }
        self._tables = _BlockTables(self._sizes[-1], self._max_blocks)
        self._last = torch.zeros(max_rows, dtype=torch.int64, device=kv.device)

    @property
    def sizes(self) -> Seq[int]:
        return self._sizes

    def can_replay(self, singles: Seq[Chunk], longer: Seq[Chunk] = ()) -> bool:
        """Whether a step of these chunks can be replayed; `singles` have one token each."""
        tokens = sum(length for _, length in longer)
        reads = sum(length * (sequence.num_computed + length) for sequence, length in longer)
        return (
            len(singles) + len(longer) <= self._max_rows
            and len(singles) + tokens <= self._sizes[-1]
            and reads <= _MAX_PROMPT_READS
            and not any(sequence.pending for sequence, _ in longer)
        )

    def logits(self, chunks: Seq[Chunk], last: Tensor | None, plan: FusedPlan) -> Tensor:
        """Replay one step. Logits [chunks, vocab] of each chunk's last token, valid until the next.

        Args:
            chunks: those of one token first.
            last: int64, the tokens that the step before sampled; it has the pending ones.
        """
        tokens = sum(chunk.length for chunk in chunks)
        rows = next(size for size in self._sizes if size >= tokens)
        captured = self.capture(rows, plan.groups)
        fixed = self._fixed[rows]
        self._fill(fixed, chunks)
        if last is not None:
            self._last[: len(last)].copy_(last)
        return captured.replay(plan.pages)[: len(chunks)]

    def _fill(self, fixed: _DecodeInputs, chunks: Seq[Chunk]) -> None:
        numbers = np.zeros(fixed.numbers.shape, dtype=np.int64)
        numbers[2] = self._kv.sink
        numbers[4] = -1
        singles = [sequence for sequence, length in chunks if length == 1]
        at = len(singles)
        if singles:
            self._fill_singles(numbers[:, :at], singles)
        for chunk in chunks[at:]:
            stop = at + chunk.length
            self._fill_chunk(numbers[:, at:stop], chunk)
            self._tables.put_all(range(at, stop), chunk.sequence.blocks)
            at = stop
        numbers[3, :at] = numbers[1, :at] + 1
        width = (int(numbers[3, :at].max()) - 1) // self._kv.block_tokens + 1
        ends = list(accumulate(chunk.length for chunk in chunks))
        numbers[5, : len(ends)] = np.array(ends) - 1
        refill(fixed.numbers, numbers)
        refill(fixed.tables[:at, :width], np.ascontiguousarray(self._tables.rows[:at, :width]))

    def _fill_singles(self, numbers: NDArray[np.int64], singles: list[Sequence]) -> None:
        """By columns: numpy converts a list in a tenth of the time of its single numbers."""
        size = self._kv.block_tokens
        positions = [it.num_computed for it in singles]
        numbers[1] = positions
        blocks = [it.blocks[at // size] for it, at in zip(singles, positions, strict=True)]
        numbers[2] = np.array(blocks) * size + numbers[1] % size
        numbers[4] = [it.source if it.pending else -1 for it in singles]
        for row in np.flatnonzero(numbers[4] < 0).tolist():
            numbers[0, row] = singles[row].tokens(positions[row], positions[row] + 1)[0]
        self._tables.put([it.blocks for it in singles])

    def _fill_chunk(self, numbers: NDArray[np.int64], chunk: Chunk) -> None:
        sequence, size = chunk.sequence, self._kv.block_tokens
        first, stop = sequence.num_computed, sequence.num_computed + chunk.length
        positions = np.arange(first, stop)
        numbers[0] = sequence.tokens(first, stop)
        numbers[1] = positions
        numbers[2] = np.array(sequence.blocks)[positions // size] * size + positions % size

    def capture(self, rows: int, groups: tuple[FusedGroup, ...]) -> CapturedGraph:
        """The graph of so many rows, captured if it is not yet."""
        fixed, device = self._fixed[rows], self._kv.device

        def prepare() -> list[GroupInputs]:
            fixed.clear()
            return [GroupInputs(group, rows, rows, device) for group in groups]

        def run(inputs: Seq[GroupInputs]) -> Tensor:
            return self._run(fixed, groups, inputs)

        return self._graphs.find(groups, ("decodes", rows), prepare, run)

    def _run(
        self, fixed: _DecodeInputs, groups: Seq[FusedGroup], inputs: Seq[GroupInputs]
    ) -> Tensor:
        adapters = self._graphs.adapters_of(groups, inputs)
        ids = torch.where(fixed.sources < 0, fixed.ids, self._last[fixed.sources.clamp(min=0)])
        attend = attend_decodes(
            self._decoder, self._kv, fixed.tables, fixed.lengths.to(torch.int32)
        )
        hidden = self._decoder.hidden(
            ids, fixed.positions, fixed.places, self._kv, attend, adapters
        )
        return self._decoder.logits(hidden[fixed.ends])


def attend_decodes(decoder: FusedDecoder, kv: KVCache, tables: Tensor, lengths: Tensor) -> Attend:
    """Attention of rows of one token each.

    Args:
        tables: int32 [rows, most blocks]; lengths: int32 [rows], keys that each sees, its own too.
    """

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = kv.layers[layer]
        window = decoder.windows[layer]
        return decode_attention(q, keys, values, tables, lengths, decoder.scaling, window)

    return attend


class _BlockTables:
    """The block table of each row on the host, kept from step to step: most rows do not change."""

    def __init__(self, max_rows: int, max_blocks: int) -> None:
        self.rows = np.zeros((max_rows, max_blocks), dtype=np.int32)
        self._lists: list[list[int] | None] = [None] * max_rows
        self._known = [0] * max_rows

    def put_all(self, rows: range, blocks: list[int]) -> None:
        """Set these blocks for all of `rows`, in this step alone."""
        self.rows[rows.start : rows.stop, : len(blocks)] = blocks
        for row in rows:
            self._lists[row] = None

    def put(self, rows: Seq[list[int]]) -> None:
        """Set the blocks of the first rows. A list only ever grows: a sequence that lost its blocks
        gets a new list.
        """
        lists, known = self._lists, self._known
        for row, blocks in enumerate(rows):
            if lists[row] is not blocks:
                lists[row], known[row] = blocks, 0
            if known[row] < len(blocks):
                self.rows[row, known[row] : len(blocks)] = blocks[known[row] :]
                known[row] = len(blocks)
