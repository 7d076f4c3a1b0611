"""Lays out a step's tokens as one flat batch: where each one writes and what it attends to.

Built once a step and shared by all layers. Knows no weights and no sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.device import to_device
from server.engine.kv_cache import KVCache
from server.engine.sequence import Chunk


@dataclass(frozen=True)
class AttentionCall:
    """Some rows of the flat batch and the keys that they see.

    Either many sequences with one token each, or one sequence with many. `blocks` is the index for
    `KVCache.read`; the first `num_keys` keys of each sequence are used. `mask` is added to the
    scores, [1, sequences, query tokens of each, num_keys]; None: there is one key for each query,
    and a query sees the keys up to its own place.
    """

    rows: slice
    sequences: int
    blocks: Tensor
    num_keys: int
    mask: Tensor | None

    @property
    def decodes(self) -> bool:
        tokens: int = self.rows.stop - self.rows.start
        return tokens == self.sequences


class Layout:
    """A step's chunks flattened: single tokens first, shortest context first, then longer chunks.

    Attributes:
        chunks: in the order of the flat batch.
        num_singles: chunks of one token, which stand first.
        starts: the first flat row of each chunk.
        token_ids, positions: int64 [tokens], on the cache's device.
        places: int64 [tokens], `block * block_tokens + offset` of each token in the cache.
        write_at: the index for `KVCache.write`.
        slots: the adapter slot of each token.
        windows: the attention windows that the model's layers used in this step.
    """

    def __init__(self, chunks: Sequence[Chunk], cache: KVCache) -> None:
        singles = [chunk for chunk in chunks if chunk.length == 1]
        singles.sort(key=lambda chunk: chunk.sequence.num_computed)
        self.chunks = [*singles, *(chunk for chunk in chunks if chunk.length > 1)]
        self.cache = cache
        self.num_singles = len(singles)
        self._reads: dict[int | None, list[AttentionCall]] = {}
        self.starts: list[int] = []
        self.slots: list[int] = []
        token_ids: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        size = cache.block_tokens
        for chunk in self.chunks:
            sequence = chunk.sequence
            span = range(sequence.num_computed, sequence.num_computed + chunk.length)
            self.starts.append(len(positions))
            self.slots += [sequence.slot] * chunk.length
            token_ids += sequence.tokens(span.start, span.stop)
            positions += span
            places += [sequence.blocks[p // size] * size + p % size for p in span]
        packed = to_device([token_ids, positions, places], torch.int64, cache.device)
        self.token_ids, self.positions, self.places = packed.unbind()
        self.write_at = cache.places(self.places)

    @property
    def windows(self) -> frozenset[int | None]:
        return frozenset(self._reads)

    def decode_tables(self) -> tuple[Tensor, Tensor]:
        """The block tables of the single tokens, int32 [singles, most blocks], and the number of
        keys that each token sees, int32 [singles].
        """
        singles = [chunk.sequence for chunk in self.chunks[: self.num_singles]]
        width = max((len(it.blocks) for it in singles), default=0)
        tables = [[*it.blocks, *[0] * (width - len(it.blocks))] for it in singles]
        device = self.cache.device
        return (
            to_device(tables, torch.int32, device),
            to_device([it.num_computed + 1 for it in singles], torch.int32, device),
        )

    def reads(self, window: int | None) -> list[AttentionCall]:
        """The calls of attention for layers that see `window` tokens back (None: all)."""
        if window not in self._reads:
            self._reads[window] = [*self._decodes(window), *self._prompts(window)]
        return self._reads[window]

    def _decodes(self, window: int | None) -> list[AttentionCall]:
        """Group single tokens so that at most a quarter of a row's blocks is padding."""
        reads: list[AttentionCall] = []
        stop = self.num_singles
        spans = [self._span(chunk, window) for chunk in self.chunks[:stop]]
        while stop > 0:
            widest = len(spans[stop - 1])
            start = stop - 1
            while start > 0 and 4 * len(spans[start - 1]) >= 3 * widest:
                start -= 1
            reads.append(self._decode(slice(start, stop), spans[start:stop], window))
            stop = start
        return reads

    def _span(self, chunk: Chunk, window: int | None) -> range:
        """Indices into the sequence's blocks that `chunk` reads."""
        size = self.cache.block_tokens
        position = chunk.sequence.num_computed
        first = 0 if window is None else max(position + 1 - window, 0)
        return range(first // size, (position + chunk.length - 1) // size + 1)

    def _decode(self, rows: slice, spans: list[range], window: int | None) -> AttentionCall:
        width = max(len(span) for span in spans)
        # Padding reads the row's first block once more; the mask hides it.
        blocks = [
            [chunk.sequence.blocks[i] for i in span]
            + chunk.sequence.blocks[:1] * (width - len(span))
            for chunk, span in zip(self.chunks[rows], spans, strict=True)
        ]
        size = self.cache.block_tokens
        first_keys = self._tensor([span.start * size for span in spans])
        keys = first_keys[:, None] + torch.arange(width * size, device=self.cache.device)
        mask = self._mask(self.positions[rows, None], keys, window)
        read = self.cache.rows(self._tensor(blocks))
        return AttentionCall(rows, len(spans), read, width * size, mask[None, :, None])

    def _prompts(self, window: int | None) -> list[AttentionCall]:
        chunks = zip(self.chunks, self.starts, strict=True)
        return [self._prompt(chunk, start, window) for chunk, start in chunks if chunk.length > 1]

    def _prompt(self, chunk: Chunk, start: int, window: int | None) -> AttentionCall:
        span = self._span(chunk, window)
        rows = slice(start, start + chunk.length)
        blocks = self.cache.rows(self._tensor(chunk.sequence.blocks[span.start : span.stop]))
        first_key = span.start * self.cache.block_tokens
        num_keys = chunk.sequence.num_computed + chunk.length - first_key
        if num_keys == chunk.length and (window is None or window >= chunk.length):
            return AttentionCall(rows, 1, blocks, num_keys, None)
        keys = first_key + torch.arange(num_keys, device=self.cache.device)
        mask = self._mask(self.positions[rows, None], keys, window)
        return AttentionCall(rows, 1, blocks, num_keys, mask[None, None])

    def _mask(self, queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
        hidden = keys > queries
        if window is not None:
            hidden |= keys <= queries - window
        mask = torch.zeros(hidden.shape, dtype=self.cache.dtype, device=self.cache.device)
        return mask.masked_fill_(hidden, -torch.inf)

    def _tensor(self, numbers: list[int] | list[list[int]]) -> Tensor:
        return to_device(numbers, torch.int64, self.cache.device)
