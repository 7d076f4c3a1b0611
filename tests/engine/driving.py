"""Drive a `Runner` without a scheduler: one sequence alone, or many under a random schedule."""

import random
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from server.adapters.residency import ResidentAdapters
from server.bases.model import BaseModel
from server.engine.blocks import BlockPool
from server.engine.kv_cache import KVCache
from server.engine.runner import Runner
from server.engine.sequence import Chunk, SamplingParams, Sequence, StepOutput


@dataclass
class Engine:
    """A runner with its blocks."""

    runner: Runner
    pool: BlockPool
    outputs: dict[int, list[StepOutput]] = field(default_factory=dict)

    def step(self, chunks: Seq[Chunk]) -> list[StepOutput]:
        """One step, its tokens appended; every chunk must find its blocks."""
        for chunk in chunks:
            assert self.pool.grow(chunk.sequence, chunk.sequence.num_computed + chunk.length)
        outputs = self.runner.step(chunks)
        for chunk, output in zip(chunks, outputs, strict=True):
            assert output.sequence is chunk.sequence
            self.outputs.setdefault(output.sequence.seq_id, []).append(output)
            if output.token_id is not None:
                output.sequence.output.append(output.token_id)
        return outputs

    def finish(self, sequence: Sequence, chunk: int = 1 << 20) -> list[int]:
        """Run `sequence` alone, in chunks, until it has `max_tokens` tokens."""
        while len(sequence.output) < sequence.params.max_tokens:
            self.step([Chunk(sequence, min(sequence.remaining, chunk))])
        self.pool.free(sequence)
        return sequence.output

    def finish_mixed(self, sequences: Iterable[Sequence], rng: random.Random) -> int:
        """Run all in random chunks, joining, leaving and losing their blocks at random times.

        Returns: how often a sequence was pre-empted.
        """
        waiting, running, preempted = list(sequences), list[Sequence](), 0
        while waiting or running:
            if waiting and (not running or rng.random() < 0.4):
                running.append(waiting.pop(0))
            if running and rng.random() < 0.1:
                self.pool.free(rng.choice(running))
                preempted += 1
            chosen = rng.sample(running, rng.randint(1, len(running)))
            chunks = [Chunk(it, rng.randint(1, min(it.remaining, 23))) for it in chosen]
            self.step(chunks)
            for sequence in [it for it in running if len(it.output) >= it.params.max_tokens]:
                self.pool.free(sequence)
                running.remove(sequence)
        return preempted


def make_engine(
    model: PreTrainedModel,
    *,
    block_tokens: int = 16,
    memory_mb: int = 4,
    adapters: ResidentAdapters | None = None,
    nameless: Iterable[int] = (),
) -> Engine:
    base = BaseModel.of(model, "tiny").without(nameless)
    kv = KVCache(base, memory_mb=memory_mb, block_tokens=block_tokens)
    return Engine(Runner(base, adapters, kv), BlockPool(kv.num_blocks, block_tokens))


def make_sequence(seq_id: int, prompt: Iterable[int], *, slot: int = 0, **params: Any) -> Sequence:
    """A greedy sequence of 12 tokens, unless `params` say otherwise."""
    chosen = SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **params})
    return Sequence(seq_id, tuple(prompt), chosen, seed=chosen.seed or 1000 + seq_id, slot=slot)


def random_prompt(rng: random.Random, length: int, vocab: int) -> list[int]:
    return [rng.randrange(vocab) for _ in range(length)]


@torch.inference_mode()
def generate(model: PreTrainedModel, prompt: Seq[int], count: int) -> list[int]:
    """What transformers' own greedy generation answers."""
    # The stubs' self type excludes the very classes that have the method.
    tokens = cast(Any, model).generate(
        torch.tensor([prompt], device=model.device),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64, device=model.device),
        generation_config=None,
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    answer: list[int] = tokens[0, len(prompt) :].tolist()
    return answer
