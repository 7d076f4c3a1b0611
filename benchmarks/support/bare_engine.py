"""The engine of a random model without a loop, with sequences at whatever length a benchmark needs.

Keys and values of the tokens before are random numbers, so no prompt is ever run.
"""

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from benchmarks.support.crowd import MAX_RANK, SEED
from benchmarks.support.roofline import synchronize
from server.adapters.residency import ResidentAdapters
from server.bases.model import BaseModel
from server.engine.fused.fused_builder import build_fused_forward
from server.engine.kv_cache import KVCache
from server.engine.launched_step import LaunchedStep
from server.engine.runner import Runner
from server.engine.sequence import Chunk, SamplingParams, Sequence

BLOCK_TOKENS = 16
GREEDY = SamplingParams(max_tokens=2**20, temperature=0.0, ignore_eos=True)
_MIB = 2**20


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done what an action launches."""
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class BareEngine:
    """A runner and its KV cache; `start_s` is the time of its construction."""

    base: BaseModel
    runner: Runner
    kv: KVCache
    start_s: float

    @classmethod
    def of(
        cls,
        base: BaseModel,
        adapters: ResidentAdapters,
        *,
        rows: int,
        context: int,
        plain: bool = False,
        ahead: bool = True,
    ) -> "BareEngine":
        """For batches of `rows` sequences of `context` tokens.

        As the server makes one: with kernels and graphs where they apply, unless `plain`, and
        graphs captured ahead, unless not `ahead`.
        """
        token_bytes = 2 * base.num_layers * base.num_kv_heads * base.head_dim * base.dtype.itemsize
        blocks = rows * -(-context // BLOCK_TOKENS) + 16
        memory_mb = blocks * BLOCK_TOKENS * token_bytes // _MIB + 1
        kv = KVCache(base, memory_mb=memory_mb, block_tokens=BLOCK_TOKENS)
        start = time.perf_counter()
        fast = None
        if not plain:
            fast = build_fused_forward(
                base,
                adapters,
                kv,
                max_rows=rows,
                max_step_tokens=2048,
                max_context=base.max_context,  # as in a server: tables are as wide
                max_rank=MAX_RANK,
                seed=SEED,
            )
        runner = Runner(base, adapters, kv, None if fast is None else fast.forward)
        if fast is not None and ahead:
            fast.capture(lambda done, of: None)
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
            raise ValueError(f"no blocks for {len(slots)} sequences: make the engine for more")
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

    def run(self, steps: Iterable[Seq[Chunk]]) -> None:
        """Run steps as the serving loop does: the next is launched while one is in flight."""
        launched: list[LaunchedStep] = []
        for chunks in steps:
            launched.append(self.runner.launch(chunks))
            if len(launched) > self.runner.ahead:
                _collect(launched.pop(0))
        for step in launched:
            _collect(step)

    def decode_s(self, sequences: Seq[Sequence], steps: int) -> float:
        """Seconds of one of `steps` steps of a token for each, from the ends of their prompts."""
        for sequence in sequences:
            sequence.num_computed = len(sequence.prompt) - 1
        chunks = ([Chunk(sequence, 1) for sequence in sequences] for _ in range(steps))
        return seconds(lambda: self.run(chunks), self.base.device) / steps


def _collect(step: LaunchedStep) -> None:
    for output in step.outputs():
        if output.failure is not None:
            raise ValueError(f"a benchmark must not overflow: {output.failure}")
        if output.token_id is not None:
            output.sequence.output.append(output.token_id)
