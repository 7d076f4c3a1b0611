"""What a replayed step reads: by columns, as it would be filled token by token."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.engine.blocks import BlockPool
from server.engine.sequence import Chunk, SamplingParams, Sequence

pytest.importorskip("triton")

from server.engine.fused import decode_graphs

SINK, SIZE, ROWS, MOST = 7, 4, 40, 16


def plainly(chunks: list[Chunk]) -> tuple[NDArray[np.int64], list[list[int]]]:
    """ids, positions, places, lengths, sources and ends, and each row's blocks."""
    numbers = np.zeros((6, ROWS), dtype=np.int64)
    numbers[2], numbers[4] = SINK, -1
    tables: list[list[int]] = []
    for number, (sequence, length) in enumerate(chunks):
        for position in range(sequence.num_computed, sequence.num_computed + length):
            row = len(tables)
            place = sequence.blocks[position // SIZE] * SIZE + position % SIZE
            pending = position >= sequence.num_known
            token = 0 if pending else [*sequence.prompt, *sequence.output][position]
            source = sequence.source if pending else -1
            numbers[:5, row] = token, position, place, position + 1, source
            tables.append(sequence.blocks)
        numbers[5, number] = len(tables) - 1
    return numbers, tables


class Steps:
    """Random steps of sequences that come, grow, lose their blocks and go."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.pool = BlockPool(200, SIZE)
        self.running: list[Sequence] = []
        self.made = 0

    def chunks(self) -> list[Chunk]:
        if len(self.running) < 8 and self.draw.random() < 0.5:
            prompt = tuple(self.draw.choices(range(3), k=self.draw.randint(1, 9)))
            self.made += 1
            self.running.append(Sequence(self.made, prompt, SamplingParams(), seed=0))
        for sequence in [*self.running]:
            if self.draw.random() < 0.1 or sequence.num_tokens > MOST * SIZE - 2:
                self.read(sequence)  # no graph takes pending tokens within longer chunks
                self.pool.free(sequence)
                if self.draw.random() < 0.5 or sequence.num_tokens > MOST * SIZE - 2:
                    self.running.remove(sequence)
        for sequence in self.running:
            if sequence.remaining > 1:
                self.pool.reuse(sequence)
            assert self.pool.grow(sequence, sequence.num_tokens)
        chunks = [Chunk(it, it.remaining) for it in self.running]
        singles = [chunk for chunk in chunks if chunk.length == 1]
        longer = [chunk for chunk in chunks if chunk.length > 1]
        return [*singles, *longer] if sum(it.length for it in longer) < ROWS - 8 else singles

    def ran(self, chunks: list[Chunk]) -> None:
        for source, (sequence, length) in enumerate(chunks):
            sequence.num_computed += length
            self.read(sequence)
            sequence.pending, sequence.source = 1, source
            if self.draw.random() < 0.2:
                self.read(sequence)

    def read(self, sequence: Sequence) -> None:
        """What is pending is known."""
        if sequence.pending:
            sequence.output.append(self.draw.randrange(3))
            sequence.pending = 0


@pytest.mark.parametrize("seed", range(20))
def test_columns_say_what_rows_say(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[NDArray[np.int64]] = []

    def keep(_target: Tensor, source: NDArray[np.int64]) -> None:
        filled.append(source.copy())

    monkeypatch.setattr(decode_graphs, "refill", keep)
    made = decode_graphs.DecodeGraphs.__new__(decode_graphs.DecodeGraphs)
    made._kv = SimpleNamespace(block_tokens=SIZE, sink=SINK)  # type: ignore[assignment]
    made._tables = decode_graphs._BlockTables(ROWS, MOST)
    fixed = decode_graphs._DecodeInputs(ROWS, ROWS, MOST, SINK, torch.device("cpu"))
    steps = Steps(seed)
    for _ in range(200):
        chunks = steps.chunks()
        if not chunks:
            continue
        made._fill(fixed, chunks)
        numbers, tables = plainly(chunks)
        got, rows = filled[-2:]
        assert (got == numbers).all()
        for row, blocks in zip(rows, tables, strict=True):
            known = min(len(blocks), len(row))
            assert row[:known].tolist() == blocks[:known]
        assert rows.shape[1] * SIZE >= numbers[3].max()
        steps.ran(chunks)


def test_a_sequence_that_lost_its_blocks_is_read_anew() -> None:
    pool, tables = BlockPool(8, SIZE), decode_graphs._BlockTables(1, MOST)
    one, other = (Sequence(number, (1,) * 12, SamplingParams(), seed=0) for number in range(2))
    assert pool.grow(one, 12)
    tables.put([one.blocks])
    pool.free(one)
    assert pool.grow(other, 8) and pool.grow(one, 12)
    tables.put([one.blocks])
    assert tables.rows[0, :3].tolist() == one.blocks
