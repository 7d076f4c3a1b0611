"""Prompts as CUDA graphs: chunks of several tokens, padded to a few sizes.

To launch a layer's operations one by one takes the host longer than a short prompt takes the
device, and every decode in the same step waits for it. Knows no sampling and no scheduling.
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
from server.adapters.kernels.segments import capacity_for
from server.engine.fused import prefill_attention
from server.engine.fused.decoder import FusedDecoder
from server.engine.fused.graph_cache import CapturedGraph, GraphCache
from server.engine.fused.prefill_attention import PackedPrompts
from server.engine.kv_cache import KVCache
from server.engine.sequence import Chunk

MOST_PROMPTS: Final = 64
MOST_KEYS: Final = 4096
"""Of all chunks together, if one of them continues its sequence: all keys are then gathered."""
_SIZES: Final = (32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)


class _PromptInputs:
    """The inputs of captured prompts of so many tokens, at addresses that stay.

    The last of the sequences is the padding: it has all tokens and keys that are left.

    Args:
        keys: of all sequences and the padding; None: all begin, and have as many keys as tokens.
    """

    def __init__(self, tokens: int, keys: int | None, kv: KVCache) -> None:
        device = kv.device
        self.numbers = torch.zeros(3, tokens, dtype=torch.int64, device=device)
        self.ids, self.positions, self.places = self.numbers.unbind()
        self.starts = torch.zeros(2, MOST_PROMPTS + 2, dtype=torch.int32, device=device)
        self.last = torch.zeros(MOST_PROMPTS, dtype=torch.int64, device=device)
        keys_at = None
        if keys is not None:
            keys_at = torch.zeros(keys, dtype=torch.int64, device=device)
        self.prompts = PackedPrompts(
            self.starts[0], self.starts[1], tokens, keys or tokens, keys_at
        )
        self._sink = kv.sink

    def clear(self) -> None:
        """Make every token padding."""
        self.numbers.zero_()
        self.places.fill_(self._sink)
        self.starts.zero_()
        self.starts[0, -1] = self.prompts.longest_query
        self.starts[1, -1] = self.prompts.longest_key
        self.last.zero_()
        if self.prompts.keys_at is not None:
            self.prompts.keys_at.fill_(self._sink)


class PromptGraphs:
    """Graphs over `decoder`, captured at first use, or ahead of it by `capture`."""

    def __init__(
        self, decoder: FusedDecoder, kv: KVCache, graphs: GraphCache, *, max_tokens: int
    ) -> None:
        self._decoder = decoder
        self._kv = kv
        self._graphs = graphs
        fitting = [size for size in _SIZES if size < max_tokens]
        self._sizes = [*fitting, min(max_tokens, _SIZES[-1])]
        self._fixed: dict[tuple[int, int | None], _PromptInputs] = {}

    def can_replay(self, chunks: Seq[Chunk]) -> bool:
        """Whether these chunks can be replayed."""
        tokens = sum(chunk.length for chunk in chunks)
        keys = sum(chunk.sequence.num_computed + chunk.length for chunk in chunks)
        return (
            len(chunks) <= MOST_PROMPTS
            and tokens <= self._sizes[-1]
            and (keys == tokens or keys <= MOST_KEYS)
            and not any(chunk.sequence.pending for chunk in chunks)
        )

    def logits(self, chunks: Seq[Chunk], plan: FusedPlan) -> Tensor:
        """Replay: logits [chunks, vocab] of each chunk's last token, until the next replay."""
        tokens = sum(chunk.length for chunk in chunks)
        size = next(size for size in self._sizes if size >= tokens)
        keys = MOST_KEYS if any(chunk.sequence.num_computed for chunk in chunks) else None
        fixed, captured = self._graph(size, keys, plan.groups)
        self._fill(fixed, chunks)
        return captured.replay(plan.pages)[: len(chunks)]

    @property
    def sizes(self) -> Seq[int]:
        return self._sizes

    def capture(self, size: int, groups: tuple[FusedGroup, ...]) -> None:
        """Capture prompts of so many tokens that begin their sequences."""
        self._graph(size, None, groups)

    def _graph(
        self, size: int, keys: int | None, groups: tuple[FusedGroup, ...]
    ) -> tuple[_PromptInputs, CapturedGraph]:
        fixed = self._fixed.get((size, keys))
        if fixed is None:
            fixed = self._fixed[size, keys] = _PromptInputs(size, keys, self._kv)

        def prepare() -> list[GroupInputs]:
            fixed.clear()
            segments = capacity_for(size, MOST_PROMPTS)
            return [GroupInputs(group, size, segments, self._kv.device) for group in groups]

        def run(inputs: Seq[GroupInputs]) -> Tensor:
            return self._run(fixed, groups, inputs)

        return fixed, self._graphs.find(groups, ("prompts", size, keys), prepare, run)

    def _fill(self, fixed: _PromptInputs, chunks: Seq[Chunk]) -> None:
        numbers = np.zeros(fixed.numbers.shape, dtype=np.int64)
        numbers[2] = self._kv.sink
        at = 0
        for chunk in chunks:
            first, stop = chunk.sequence.num_computed, chunk.sequence.num_computed + chunk.length
            span = slice(at, at + chunk.length)
            numbers[0, span] = chunk.sequence.tokens(first, stop)
            numbers[1, span] = np.arange(first, stop)
            numbers[2, span] = self._places(chunk, first)
            at = span.stop
        refill(fixed.numbers, numbers)
        queries = [chunk.length for chunk in chunks]
        keys = [chunk.sequence.num_computed + chunk.length for chunk in chunks]
        starts = np.zeros(fixed.starts.shape, dtype=np.int32)
        for row, counts in enumerate((queries, keys)):
            ends = list(accumulate(counts))
            starts[row, 1 : len(ends) + 1] = ends
            starts[row, len(ends) + 1 :] = ends[-1]
        starts[:, -1] = fixed.prompts.longest_query, fixed.prompts.longest_key
        refill(fixed.starts, starts)
        last = np.zeros(len(fixed.last), dtype=np.int64)
        last[: len(chunks)] = starts[0, 1 : len(chunks) + 1] - 1
        refill(fixed.last, last)
        if fixed.prompts.keys_at is not None:
            keys_at = np.full(len(fixed.prompts.keys_at), self._kv.sink, dtype=np.int64)
            keys_at[: sum(keys)] = np.concatenate([self._places(chunk, 0) for chunk in chunks])
            refill(fixed.prompts.keys_at, keys_at)

    def _places(self, chunk: Chunk, first: int) -> NDArray[np.int64]:
        """The places in the cache of a sequence's tokens, from token `first` to the chunk's end."""
        size = self._kv.block_tokens
        tokens = np.arange(first, chunk.sequence.num_computed + chunk.length)
        places: NDArray[np.int64] = np.array(chunk.sequence.blocks)[tokens // size] * size
        return places + tokens % size

    def _run(
        self, fixed: _PromptInputs, groups: Seq[FusedGroup], inputs: Seq[GroupInputs]
    ) -> Tensor:
        decoder = self._decoder

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            window, scaling = decoder.windows[layer], decoder.scaling
            return prefill_attention.attend(
                q, k, v, fixed.prompts, self._kv, layer, scaling=scaling, window=window
            )

        adapters = self._graphs.adapters_of(groups, inputs)
        hidden = decoder.hidden(
            fixed.ids, fixed.positions, fixed.places, self._kv, attend, adapters
        )
        return decoder.logits(hidden[fixed.last])
