"""Compares replayed steps with the same steps launched one by one, before the first request.

A graph that was captured wrongly would always answer wrongly, and another torch, kernel or driver
may capture differently. Knows no queue.
"""

import torch
from torch import Tensor

from server.bases.model import BaseModel
from server.engine.kv_cache import KVCache
from server.engine.plain.forward import Forward
from server.engine.plain.model_support import TOLERANCE
from server.engine.sequence import Chunk, SamplingParams, Sequence
from server.errors import UnsupportedModel

# Tokens of two sequences: two prompts; a decode and a prompt; two decodes; a prompt and a decode.
_STEPS = ((9, 40), (1, 30), (1, 1), (12, 1))


def check_replays(base: BaseModel, kv: KVCache, replayed: Forward, flat: Forward) -> None:
    """Run some steps both ways, in the first blocks of `kv`, which no sequence holds yet.

    Raises:
        UnsupportedModel: the logits differ.
    """
    expected, got = (_logits(base, kv, forward) for forward in (flat, replayed))
    for step, (logits, reference) in enumerate(zip(got, expected, strict=True)):
        off = float((logits - reference).norm() / reference.norm())
        if not off < TOLERANCE[base.dtype]:
            raise UnsupportedModel(
                f"base model {base.name!r} gives other logits when step {step} of the trial is "
                f"replayed as a CUDA graph: they differ by {off:.1e} of their size; start with "
                "--no-fused to serve it by its own forward"
            )


@torch.inference_mode()
def _logits(base: BaseModel, kv: KVCache, forward: Forward) -> list[Tensor]:
    """The logits of each step, [sequences, vocab] in float32."""
    generator = torch.Generator().manual_seed(0)
    totals = [sum(lengths) for lengths in zip(*_STEPS, strict=True)]
    tokens = [torch.randint(base.vocab_size, (it,), generator=generator).tolist() for it in totals]
    sequences, first = [], 0
    for number, total in enumerate(totals):
        stop = first - (-total // kv.block_tokens)
        blocks = list(range(first, stop))
        sequences.append(Sequence(number, (), SamplingParams(), seed=0, blocks=blocks))
        first = stop
    if first > kv.num_blocks:
        raise UnsupportedModel(
            f"{kv.num_blocks} blocks of keys and values are too few for the trial of base model "
            f"{base.name!r}: raise kv_memory_mb"
        )
    last = torch.zeros(0, dtype=torch.int64, device=kv.device)
    steps = []
    for lengths in _STEPS:
        chunks = []
        for sequence, length in zip(sequences, lengths, strict=True):
            at = sequence.num_computed
            sequence.output += tokens[sequence.seq_id][at : at + length]
            chunks.append(Chunk(sequence, length))
        logit_rows, logits = forward.step(chunks, last)
        order = sorted(range(len(sequences)), key=lambda row: logit_rows.sampled[row].seq_id)
        steps.append(logits[order].float())
        for chunk in chunks:
            chunk.sequence.num_computed += chunk.length
    return steps
