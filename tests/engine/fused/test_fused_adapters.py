"""Any company of adapters: the fused decoder, its steps flat or replayed, against the plain one."""

import random
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from server.adapters.batch.group_inputs import GroupInputs
from server.adapters.batch.sites import Riding
from server.adapters.memory.matrices import need_of
from server.adapters.methods.vera.vera import Vera
from server.adapters.residency import ResidentAdapters
from server.bases.model import BaseModel
from server.engine.blocks import BlockPool
from server.engine.fused.decode_graphs import DecodeGraphs
from server.engine.fused.decoder import FusedDecoder
from server.engine.fused.fused_forward import FusedForward
from server.engine.fused.graph_cache import MAX_GRAPHS, CapturedGraph, GraphCache
from server.engine.fused.prompt_graphs import PromptGraphs
from server.engine.kv_cache import KVCache
from server.engine.plain import attention
from server.engine.plain.forward import Forward, PlainForward
from server.engine.sequence import Chunk, Sequence
from tests.adapters.made import one_of_each
from tests.adapters.served import Served
from tests.engine.driving import make_sequence, random_prompt
from tests.models import VOCAB, Kind, tiny_model

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPE = torch.bfloat16 if CUDA else torch.float32
TOLERANCE = 6e-2 if CUDA else 1e-4
MAX_ROWS = 24
PROMPT_ROWS = 200 if CUDA else 16
MAX_TOKENS = 256  # more in a step are not replayed
SEED = 7  # of the random matrices that most of them share


class Recomputed(GraphCache):
    """Without CUDA: what would be replayed is run again, over the same fixed tensors."""

    def __init__(self, adapters: ResidentAdapters) -> None:
        self._adapters = adapters
        self._cache = adapters.steps.group_cache(MAX_GRAPHS)

    def _capture(
        self, inputs: Seq[GroupInputs], run: Callable[[Seq[GroupInputs]], Tensor]
    ) -> CapturedGraph:
        logits = run(inputs)
        graph = cast(
            torch.cuda.CUDAGraph, SimpleNamespace(replay=lambda: logits.copy_(run(inputs)))
        )
        return CapturedGraph(graph, inputs, logits)


class Side:
    """One way to run the base, with adapters, cache and sequences of its own."""

    def __init__(
        self, kind: Kind, folder: Path, *, fused: bool, graphs: str = "", rides: bool
    ) -> None:
        # The interpreter is slow; Gemma's layers are of two types.
        layers = 2 if CUDA or kind == "gemma3_text" else 1
        model = tiny_model(kind, dtype=DTYPE, hidden_size=64, head_dim=16, num_hidden_layers=layers)
        torch.nn.Module.to(model, DEVICE)
        base = BaseModel.of(model, "tiny", fingerprint="tiny")
        served = Served(base, folder, slots=16, max_rank=16)
        self.adapters: ResidentAdapters = served.adapters
        refs = [served.publish(it, f"a{i}") for i, it in enumerate(one_of_each(base))]
        kv = KVCache(base, memory_mb=4, block_tokens=8)
        self.pool = BlockPool(kv.num_blocks, 8)
        self.forward: Forward = PlainForward(base, self.adapters, kv)
        captures = (GraphCache if CUDA else Recomputed)(self.adapters) if graphs else None
        if fused:
            riding = self._riding(base) if rides else None
            decoder = FusedDecoder(base, riding)
            self.forward = FusedForward(decoder, self.adapters, kv)
            if captures is not None:
                self.forward = FusedForward(
                    decoder,
                    self.adapters,
                    kv,
                    DecodeGraphs(
                        decoder,
                        kv,
                        captures,
                        max_rows=MAX_ROWS,
                        max_context=256,
                        prompt_rows=PROMPT_ROWS,
                    ),
                    PromptGraphs(decoder, kv, captures, max_tokens=MAX_TOKENS),
                    together=graphs == "at once",
                )
        else:
            attention.register()
            model.set_attn_implementation(attention.NAME)
        self._graphs = captures
        self.slots = [0, *(served.acquire(ref) for ref in refs)]

    @property
    def captured(self) -> list[str]:
        """What graphs are of, in the order of their capture."""
        entries = self._graphs._cache._entries if self._graphs is not None else {}
        return [name[0] for _, name in entries if isinstance(name, tuple)]

    def _riding(self, base: BaseModel) -> Riding:
        loaded = self.adapters.steps.bases.keep_always(
            Vera().basis(SEED), need_of(Vera(), base, base.targets, 16)
        )
        return Riding(Vera().basis(SEED), next(iter(loaded.pairs.values())).a)

    @torch.inference_mode()
    def step(self, sequences: list[Sequence], lengths: list[int]) -> Tensor:
        """Logits of the sequences whose chunk completes them, in their order."""
        chunks = [Chunk(it, n) for it, n in zip(sequences, lengths, strict=True)]
        for chunk in chunks:
            assert self.pool.grow(chunk.sequence, chunk.sequence.num_computed + chunk.length)
        last = torch.zeros(0, dtype=torch.int64, device=DEVICE)
        logit_rows, logits = self.forward.step(chunks, last)
        order = {id(it): row for row, it in enumerate(logit_rows.sampled)}
        rows = [order[id(it)] for it in sequences if id(it) in order]
        for chunk in chunks:
            chunk.sequence.num_computed += chunk.length
        return logits[rows].float().cpu()


HOW = ["riding", "replayed at once", "replayed in turn"]
ON_CUDA = [(kind, how) for kind in ("llama", "qwen3", "gemma3_text") for how in ("flat", *HOW)]
ON_CPU = [*(("llama", how) for how in HOW), ("gemma3_text", "riding")]


@pytest.fixture(params=ON_CUDA if CUDA else ON_CPU, ids=", ".join)
def sides(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    kind, how = request.param
    plain = Side(kind, tmp_path / "plain", fused=False, rides=False)
    fused = Side(
        kind,
        tmp_path / "fused",
        fused=True,
        graphs=how.partition("replayed ")[2],
        rides=how != "flat",
    )
    yield plain, fused
    plain.adapters.close()
    fused.adapters.close()


def companies(rng: random.Random, kinds: int) -> list[list[int]]:
    """Adapters of a step's rows, by number: 0 is the base."""
    if not CUDA:
        return [[1, 1, 0, 1], [0, 1, 9, 7, 2], list(range(kinds))]
    rows = MAX_ROWS - 1
    return [
        [0] * 3,
        [1] * rows,
        [rng.choice([1, 2, 3]) for _ in range(rows)],
        [7, 0, 9, 9, 1],
        [rng.randrange(kinds) for _ in range(rows)],
        list(range(min(kinds, rows))),
    ]


def test_logits_equal_the_plain_forward_s(sides: tuple[Side, Side]) -> None:
    plain = sides[0]
    rng = random.Random(1)
    for company in companies(rng, len(plain.slots)):
        prompts = [random_prompt(rng, rng.randint(1, 21 if CUDA else 5), VOCAB) for _ in company]
        pairs = [
            [
                make_sequence(i, prompt, slot=side.slots[kind])
                for i, (prompt, kind) in enumerate(zip(prompts, company, strict=True))
            ]
            for side in sides
        ]
        for step in range(4 if CUDA else 2):
            remaining = [it.remaining for it in pairs[0]]
            # First prompts in pieces beside single tokens, then decodes alone.
            lengths = [rng.randint(1, n) if step == 0 else n for n in remaining]
            logits = [side.step(own, lengths) for side, own in zip(sides, pairs, strict=True)]
            assert near(logits[1], logits[0]), (company, step)
            for own in pairs:
                for sequence in own:
                    if not sequence.remaining:
                        sequence.output.append((sequence.seq_id * 31 + step * 7) % VOCAB)
        for side, own in zip(sides, pairs, strict=True):
            for sequence in own:
                side.pool.free(sequence)


def test_a_step_in_parts_is_announced_whole(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an adapter that the first part reads could be overwritten under it."""
    side = sides[1]
    begun: list[list[int]] = []
    begin = side.adapters.steps.begin

    def listen(slots: list[int]) -> None:
        begun.append(slots)
        begin(slots)

    monkeypatch.setattr(side.adapters.steps, "begin", listen)
    single = make_sequence(0, [5], slot=side.slots[1])
    prompt = make_sequence(1, [6, 7, 8], slot=side.slots[2])
    side.step([prompt, single], [3, 1])
    assert begun == [[side.slots[1], *[side.slots[2]] * 3]]


def test_prompts_ride_with_decodes(
    sides: tuple[Side, Side], request: pytest.FixtureRequest
) -> None:
    """One replay for both where that is asked for: a flat batch would give the same logits."""
    side = sides[1]
    single = make_sequence(0, [5], slot=side.slots[1])
    prompt = make_sequence(1, [6, 7, 8], slot=side.slots[1])
    side.step([prompt, single], [3, 1])
    _, how = request.node.callspec.params["sides"]
    expected = {"replayed at once": ["decodes"], "replayed in turn": ["decodes", "prompts"]}
    assert side.captured == expected.get(how, [])


def near(got: Tensor, expected: Tensor) -> bool:
    """Every row by itself: one lost delta must not hide in the size of the others."""
    off = (got - expected).norm(dim=1) / expected.norm(dim=1)
    return got.shape == expected.shape and bool((off < TOLERANCE).all())
