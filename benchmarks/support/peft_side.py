"""The same work done with PEFT: VeRA adapters on `model.generate`, one adapter at a time.

PEFT ignores `adapter_names` for VeRA, so requests for distinct adapters cannot share a batch. They
run one after the other, and each first switches its adapter on.
"""

import time
from collections.abc import Sequence
from itertools import groupby

import torch
from peft import PeftModel, VeraConfig, get_peft_model
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from adapters_store.manifest import AdapterRef, Manifest
from benchmarks.support.stack import B_SPREAD
from server.bases.model import BaseModel


class _FirstToken(LogitsProcessor):
    """Notes when the first logits of a `generate` call are there."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.at is None:
            self.at = time.perf_counter()
        return scores


class PeftSide:
    """A PEFT model, made of `base`, with one VeRA adapter for each ref, of one rank and targets."""

    def __init__(self, base: BaseModel, manifest: Manifest, refs: Sequence[AdapterRef]) -> None:
        self.vocab_size = base.vocab_size
        config = VeraConfig(
            r=manifest.rank,
            target_modules=list(manifest.targets),
            projection_prng_key=0,
            save_projection=False,
        )
        self.model: PeftModel = get_peft_model(base.model, config, adapter_name=_name(refs[0]))
        for ref in refs[1:]:
            self.model.add_adapter(_name(ref), config)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "vera_lambda_b" in name:
                    parameter.normal_(std=B_SPREAD)
        self.model.eval()
        self._device = base.device

    def serve(
        self,
        prompts: Sequence[Sequence[int]],
        refs: Sequence[AdapterRef | None],
        answer_tokens: int,
    ) -> tuple[float, float]:
        """Answer each prompt with its adapter. Returns tokens/s and the median first token, s."""
        start = time.perf_counter()
        firsts: list[float] = []
        work = list(zip(refs, prompts, strict=True))
        for ref, group in groupby(work, key=lambda pair: pair[0]):
            batch = [prompt for _, prompt in group]
            firsts += [self._generate(ref, batch, answer_tokens) - start] * len(batch)
        total = time.perf_counter() - start
        return len(prompts) * answer_tokens / total, sorted(firsts)[len(firsts) // 2]

    def _generate(
        self, ref: AdapterRef | None, batch: Sequence[Sequence[int]], answer_tokens: int
    ) -> float:
        """Run one batch; the moment of its first token."""
        if ref is None:
            with self.model.disable_adapter():
                return self._run(batch, answer_tokens)
        self.model.set_adapter(_name(ref))
        return self._run(batch, answer_tokens)

    def _run(self, batch: Sequence[Sequence[int]], answer_tokens: int) -> float:
        first = _FirstToken()
        ids = torch.tensor(batch, device=self._device)
        with torch.inference_mode():
            self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=answer_tokens,
                min_new_tokens=answer_tokens,
                do_sample=False,
                logits_processor=LogitsProcessorList([first]),
            )
        assert first.at is not None
        return first.at


def _name(ref: AdapterRef) -> str:
    return ref.name.replace(".", "_")
