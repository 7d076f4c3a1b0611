"""The same code on a CUDA device: exact in float32, near in bfloat16."""

import random
import warnings
from typing import Any

import pytest
import torch

from server.bases.model import BaseModel
from server.engine.blocks import BlockPool
from server.engine.device import HostCopies
from server.engine.kv_cache import KVCache
from server.engine.runner import Runner
from server.engine.sampler import sample
from tests.engine.driving import Engine, generate, make_sequence, random_prompt
from tests.models import KINDS, VOCAB, Kind, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def make_cuda_engine(base: BaseModel, block_tokens: int) -> Engine:
    kv = KVCache(base, memory_mb=16, block_tokens=block_tokens)
    return Engine(Runner(base, None, kv), BlockPool(kv.num_blocks, block_tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_float32_answers_equal_generate_in_any_company(kind: Kind) -> None:
    rng = random.Random(kind)
    model = tiny_model(kind)
    prompts = [random_prompt(rng, rng.randint(1, 90), VOCAB) for _ in range(12)]
    expected = [generate(model, prompt, 12) for prompt in prompts]
    torch.nn.Module.to(model, "cuda")
    engine = make_cuda_engine(BaseModel.of(model, "tiny"), rng.choice([3, 16]))
    sequences = [make_sequence(i, prompt) for i, prompt in enumerate(prompts)]
    assert engine.finish_mixed(sequences, rng) > 0
    assert [it.output for it in sequences] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_its_own_trial(kind: Kind, dtype: torch.dtype) -> None:
    model = tiny_model(kind, dtype=dtype)
    torch.nn.Module.to(model, "cuda")
    engine = make_cuda_engine(BaseModel.of(model, "tiny"), 16)
    sequences = [make_sequence(i, [5, 6, 7 + i], top_logprobs=2) for i in range(5)]
    engine.finish_mixed(sequences, random.Random(0))
    assert all(len(it.output) == 12 for it in sequences)


def test_the_sampler_draws_as_on_the_cpu() -> None:
    logits = torch.randn(64, 900, generator=torch.Generator().manual_seed(0)) * 3
    rng = random.Random(0)
    sequences = [
        make_sequence(
            row,
            random_prompt(rng, 9, 900),
            temperature=rng.choice([0.0, 0.7, 1.0]),
            top_p=rng.choice([0.5, 1.0]),
            top_k=rng.choice([0, 20]),
            min_p=rng.choice([0.0, 0.05]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            logit_bias=((3, 2.0),),
            min_tokens=rng.choice([0, 1]),
        )
        for row in range(64)
    ]
    for row, sequence in enumerate(
        sequences
    ):  # the best of every other row, which may be struck out
        sequence.ends = frozenset({int(logits[row].argmax()), 900}) if row % 2 else frozenset()
    for nameless in (None, torch.arange(850, 900), torch.tensor([0, 3, 17, *range(300, 600)])):
        expected = sample(logits.clone(), sequences, nameless=nameless).tolist()
        on_device = None if nameless is None else nameless.cuda()
        assert sample(logits.cuda(), sequences, nameless=on_device).tolist() == expected


def test_sampling_reads_nothing_from_the_device() -> None:
    """Two rounds: the first may still load kernels."""
    rows: list[dict[str, Any]] = [
        {},
        {"top_k": 5},
        {"top_p": 0.9, "top_k": 7},
        {"top_p": 0.8, "min_p": 0.1},
        {"repetition_penalty": 1.2, "presence_penalty": 0.5},
        {"logit_bias": ((3, 2.0), (3, -1.0))},
    ]
    sequences = [
        make_sequence(row, [1, 2, 3], temperature=row % 3 / 2, **params)
        for row, params in enumerate(rows)
    ]
    for sequence in sequences:
        sequence.pending, sequence.source = 1, 5 - sequence.seq_id
    logits, last = torch.randn(6, 900, device="cuda"), torch.arange(6, device="cuda")
    nameless = torch.arange(880, 900, device="cuda")
    for mode in ("default", "error"):
        set_sync_debug_mode(mode)
        try:
            arriving = HostCopies([sample(logits.clone(), sequences, last, nameless)])
        finally:
            set_sync_debug_mode("default")
    assert min(arriving.wait()[0].tolist()) >= 0


def set_sync_debug_mode(mode: str) -> None:
    """torch warns that its detection is a prototype, the first time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)
