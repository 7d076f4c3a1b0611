"""The engine of a random model without a loop: sequences that stand where a benchmark wants them.

Keys and values of what they are said to have read are random numbers, so no prompt is ever run.
"""

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from benchmarks.roofline import synchronize
from server.adapters.residency import ResidentAdapters
from server.bases.model import BaseModel
from server.engine.kv_cache import KVCache
from server.engine.runner import Runner
from server.engine.sequence import Chunk, SamplingParams, Sequence

BLOCK_TOKENS = 16
GREEDY = SamplingParams(max_tokens=2**20, temperature=0.0, ignore_eos=True)
_MIB = 2**20


@dataclass(frozen=True)
class Engine:
    """A runner, and its memory of keys and values; `start_s` is what its construction took."""

    base: BaseModel
    runner: Runner
    kv: KVCache
    start_s: float

    @classmethod
    def of(cls, base: BaseModel, adapters: ResidentAdapters | None, kv_tokens: int) -> "Engine":
        """With room for `kv_tokens` tokens in whole blocks."""
        token_bytes = 2 * base.num_layers * base.num_kv_heads * base.head_dim * base.dtype.itemsize
        memory_mb = (kv_tokens + 16 * BLOCK_TOKENS) * token_bytes // _MIB + 1
        kv = KVCache(base, memory_mb=memory_mb, block_tokens=BLOCK_TOKENS)
        synchronize(base.device)
        start = time.perf_counter()
        runner = Runner(base, adapters, kv)
        synchronize(base.device)
        took = time.perf_counter() - start
        for layer in kv.layers:
            for memory in layer:
                memory.normal_()
        return cls(base, runner, kv, took)

    def sequences(self, slots: Seq[int], prompt_tokens: int, more_tokens: int) -> list[Sequence]:
        """One for each slot, random prompts, with blocks for `more_tokens` beyond them.

        They hold the first blocks there are: one batch at a time.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (len(slots), prompt_tokens)
        prompts = torch.randint(self.base.vocab_size, shape, generator=generator).tolist()
        each = -(-(prompt_tokens + more_tokens) // BLOCK_TOKENS)
        if each * len(slots) > self.kv.num_blocks:
            raise ValueError(f"no blocks for {len(slots)} sequences: raise kv_tokens")
        return [
            Sequence(
                number,
                tuple(prompt),
                GREEDY,
                seed=number,
                slot=slot,
                blocks=list(range(number * each, (number + 1) * each)),
            )
            for number, (prompt, slot) in enumerate(zip(prompts, slots, strict=True))
        ]

    def step(self, chunks: Seq[Chunk]) -> None:
        """One step, its tokens appended."""
        for output in self.runner.step(chunks):
            if output.failure is not None:
                raise ValueError(f"a benchmark must not overflow: {output.failure}")
            if output.token_id is not None:
                output.sequence.output.append(output.token_id)

    def decode_s(self, sequences: Seq[Sequence], steps: int) -> float:
        """Seconds of one of `steps` steps of a token for each, from the ends of their prompts."""
        for sequence in sequences:
            sequence.output.clear()
            sequence.num_computed = len(sequence.prompt) - 1
        synchronize(self.base.device)
        start = time.perf_counter()
        for _ in range(steps):
            self.step([Chunk(sequence, 1) for sequence in sequences])
        synchronize(self.base.device)
        return (time.perf_counter() - start) / steps
