"""A serving loop over a tiny model with adapters: all of serving but HTTP and text."""

import threading
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path

import torch

from adapters_store.manifest import AdapterRef
from server.engine.blocks import BlockPool
from server.engine.kv_cache import KVCache
from server.engine.runner import Runner
from server.engine.sequence import SamplingParams, TokenLogprob
from server.metrics import Metrics
from server.scheduler.loop import Limits, ServingLoop
from server.scheduler.request import CallbackListener, Generation, TextDelta
from tests.adapters.made import Made, merged_logits
from tests.adapters.served import Served
from tests.models import tiny_base
from tests.scheduler.fakes import NumberDecoder

BLOCK_TOKENS = 4
ANSWER = 7


@dataclass
class Said:
    """What was asked, and what came back by the answer's index."""

    prompt: tuple[int, ...]
    n: int
    ended: list[TextDelta] = field(default_factory=list)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    scores: tuple[TokenLogprob | None, ...] | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def hear(self, delta: TextDelta) -> None:
        self.tokens.setdefault(delta.index, []).extend(it.token_id for it in delta.tokens)
        self.scores = self.scores or delta.prompt_logprobs
        if delta.finish is not None:
            self.ended.append(delta)
        if len(self.ended) == self.n:
            self.done.set()

    def wait(self) -> "Said":
        assert self.done.wait(20), "the answer never ended"
        assert [delta.error for delta in self.ended] == [None] * self.n
        return self

    @property
    def cached(self) -> list[int]:
        """How much of the prompt each answer found."""
        return [it.cached_tokens for it in sorted(self.ended, key=lambda delta: delta.index)]


class House:
    """Blocks of four tokens, answers of seven, greedy."""

    def __init__(
        self,
        folder: Path,
        *,
        prefix_cache: bool = True,
        across_owners: bool = False,
        slots: int = 8,
        blocks: int = 600,
        max_step_tokens: int = 64,
    ) -> None:
        self.folder = folder
        self.plain = tiny_base("llama")
        self.served = Served(tiny_base("llama"), folder, slots=slots)
        kv = KVCache(self.served.base, memory_mb=1, block_tokens=BLOCK_TOKENS)
        self.metrics = Metrics("base")
        self.loop = ServingLoop(
            Runner(self.served.base, self.served.adapters, kv),
            self.served.adapters,
            BlockPool(blocks, BLOCK_TOKENS, prefix_cache=prefix_cache, across_owners=across_owners),
            NumberDecoder,
            eos=frozenset(),
            limits=Limits(
                max_rows=8, max_step_tokens=max_step_tokens, max_waiting=64, max_context=200
            ),
            metrics=self.metrics,
        )
        self.served.adapters.on_loaded = self.loop.wake
        self.loop.start()

    def close(self) -> None:
        self.loop.stop(0)
        self.served.adapters.close()

    def ask(
        self,
        prompt: Seq[int],
        adapter: AdapterRef | None = None,
        *,
        n: int = 1,
        prompt_logprobs: bool = False,
        owner: str = "ann",
        salt: str = "",
    ) -> Said:
        params = SamplingParams(
            max_tokens=ANSWER,
            temperature=0.0,
            top_logprobs=0 if prompt_logprobs else None,
            prompt_logprobs=prompt_logprobs,
        )
        said = Said(tuple(prompt), n)
        asked = Generation("r", owner, said.prompt, params, adapter, n, cache_salt=salt)
        self.loop.submit(asked, CallbackListener(said.hear))
        return said

    def check(self, said: Said, made: Made | None) -> None:
        """Hold every answer against the plain model, the adapter merged into its weights."""
        said.wait()
        for answer in said.tokens.values():
            assert len(answer) == ANSWER
            tokens = torch.tensor([*said.prompt, *answer])
            best = merged_logits(self.plain, made, tokens).argmax(-1)
            assert answer == best[len(said.prompt) - 1 : -1].tolist()

    def count(self, name: str) -> float:
        value = self.metrics.registry.get_sample_value(
            f"verandah:{name}_total", {"model_name": "base"}
        )
        assert value is not None, f"there is no {name}"
        return value
