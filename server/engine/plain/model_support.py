"""Refuses models that the engine does not run exactly: by their config, and by a trial.

A model that ran almost right would answer almost right, and nobody would notice.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
from torch import Tensor
from transformers import PretrainedConfig

from server.bases.model import BaseModel
from server.engine.blocks import BlockPool
from server.engine.kv_cache import KVCache
from server.engine.plain.token_layout import Layout
from server.engine.sequence import Chunk, SamplingParams, Sequence
from server.errors import UnsupportedModel

FlatLogits = Callable[[Layout, Seq[int]], Tensor]
"""Logits [rows, vocab] of the given rows of a step's flat batch."""

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_LONGEST_TRIAL = 160
# Relative error of the logits: rounding stays far below, a wrong position or mask far above.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}


def check_config(base: BaseModel) -> None:
    """Refuse models whose faults a short trial would not show.

    Raises:
        UnsupportedModel: the config asks for something that the engine lacks.
    """
    config = base.config
    foreign = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if foreign:
        raise UnsupportedModel(
            f"base model {base.name!r} has {', '.join(foreign)} layers: the engine runs full and "
            "sliding-window attention only"
        )
    for rope_type in _rope_types(config):
        if rope_type in ("dynamic", "longrope"):
            raise UnsupportedModel(
                f"base model {base.name!r} has {rope_type!r} rotary embeddings: they change with "
                "the longest sequence of a batch, so answers would depend on other requests"
            )
    if base.dtype not in TOLERANCE:
        raise UnsupportedModel(
            f"base model {base.name!r} is in {base.dtype}: choose float32, bfloat16 or float16"
        )


def _rope_types(config: PretrainedConfig) -> list[str]:
    """The rotary embedding types; a config has one, or one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [it for it in parameters.values() if isinstance(it, dict)]
    return [it["rope_type"] for it in (*nested, parameters) if "rope_type" in it]


class Trial:
    """Two short prompts, and their logits by the model before the engine changed its attention."""

    def __init__(self, base: BaseModel, kv: KVCache) -> None:
        self._base = base
        self._kv = kv
        longest = min(self._trial_length(), base.max_context, (kv.num_blocks - 1) * kv.block_tokens)
        generator = torch.Generator().manual_seed(0)
        self._prompts = [
            torch.randint(base.vocab_size, (length,), generator=generator)
            for length in (longest, min(11, kv.block_tokens))
        ]
        with torch.inference_mode():
            self._expected = [
                base.model(prompt[None].to(base.device), use_cache=False).logits[0]
                for prompt in self._prompts
            ]

    def _trial_length(self) -> int:
        """Longer than a short window, so that the trial covers the window's edge."""
        window = self._window()
        return 37 if window is None else min(window + 21, _LONGEST_TRIAL)

    def _window(self) -> int | None:
        config = self._base.config
        types = getattr(config, "layer_types", None)
        window: int | None = getattr(config, "sliding_window", None)
        return window if types is None or "sliding_attention" in types else None

    def check(self, forward: FlatLogits) -> None:
        """Compare the engine's logits with the model's own.

        Raises:
            UnsupportedModel: they differ, or the engine cannot run the model at all.
        """
        name = f"base model {self._base.name!r} ({self._base.model.config.model_type})"
        try:
            got, windows = self._run(forward)
        except UnsupportedModel:
            raise
        # A model's own code may raise anything at arguments that it does not know.
        except Exception as error:
            raise UnsupportedModel(f"{name} does not run in this engine: {error}") from error
        if self._window() is not None and windows == {None}:
            raise UnsupportedModel(
                f"{name} has a sliding window, but does not pass it to the engine's attention"
            )
        for logits, expected in zip(got, self._expected, strict=True):
            off = float((logits - expected).float().norm() / expected.float().norm())
            if not off < TOLERANCE[self._base.dtype]:
                raise UnsupportedModel(
                    f"{name} gives other logits in this engine than in transformers: they differ "
                    f"by {off:.1e} of their size"
                )

    @torch.inference_mode()
    def _run(self, forward: FlatLogits) -> tuple[list[Tensor], frozenset[int | None]]:
        """Run both prompts in one batch, in every mix of chunks and single tokens."""
        pool = BlockPool(self._kv.num_blocks, self._kv.block_tokens)
        sequences = [
            Sequence(number, tuple(prompt.tolist()), SamplingParams(), seed=0)
            for number, prompt in enumerate(self._prompts)
        ]
        got: list[list[Tensor]] = [[] for _ in sequences]
        windows: frozenset[int | None] = frozenset()
        for lengths in ((9, 1), (1, 4), (_LONGEST_TRIAL, _LONGEST_TRIAL)):
            chunks = [
                Chunk(sequence, min(length, sequence.remaining))
                for sequence, length in zip(sequences, lengths, strict=True)
                if sequence.remaining
            ]
            for chunk in chunks:
                assert pool.grow(chunk.sequence, chunk.sequence.num_computed + chunk.length)
            layout = Layout(chunks, self._kv)
            # In reverse order, to check that the model gives the rows in the order of the call.
            logits = forward(layout, range(len(layout.slots))[::-1]).flip(0)
            for chunk, start in zip(layout.chunks, layout.starts, strict=True):
                got[chunk.sequence.seq_id].append(logits[start : start + chunk.length])
                chunk.sequence.num_computed += chunk.length
            windows |= layout.windows
        return [torch.cat(parts) for parts in got], windows
