"""Runs steps: a mixed batch of chunks through the model, and a token for each complete one.

It reads sequences and advances what they have computed; the scheduler allots blocks and appends
tokens. Knows no queue and no text.
"""

from collections.abc import Sequence as Seq

import torch

from server.adapters.residency import ResidentAdapters
from server.bases.model import BaseModel
from server.engine.kv_cache import KVCache
from server.engine.launched_step import LaunchedStep
from server.engine.plain import attention
from server.engine.plain.forward import Forward, PlainForward
from server.engine.plain.model_support import Trial, check_config
from server.engine.sequence import Chunk, StepOutput


class Runner:
    """Runs steps of `base` with `adapters` (None: of the base alone), keys and values in `kv`.

    From here on the model's attention is the engine's: it no longer runs without a `Runner`.
    Construction runs a short prompt through the model as it was and through the engine.

    Args:
        forward: how chunks become logits; None: the model's own forward, which needs no CUDA.

    Attributes:
        ahead: how many launched steps may be in flight while the next is prepared: 1 where the
            device works beside the host, 0 where it is the host.

    Raises:
        UnsupportedModel: the engine cannot run this model exactly.
    """

    def __init__(
        self,
        base: BaseModel,
        adapters: ResidentAdapters | None,
        kv: KVCache,
        forward: Forward | None = None,
    ) -> None:
        model = base.model
        self.ahead = int(kv.device.type == "cuda")
        self._nameless = base.nameless
        self._sampled = torch.zeros(0, dtype=torch.int64, device=kv.device)
        check_config(base)
        if model.config._attn_implementation == attention.NAME:  # set by an earlier Runner
            model.set_attn_implementation("sdpa")
        trial = Trial(base, kv)
        attention.register()
        model.set_attn_implementation(attention.NAME)
        self._forward = PlainForward(base, adapters, kv) if forward is None else forward
        trial.check(self._forward.logits)

    def launch(self, chunks: Seq[Chunk]) -> LaunchedStep:
        """Start a step. Its outputs may be read after the next step was launched.

        Each sequence must hold blocks for its tokens up to the chunk's end, and be in one chunk
        only. A sequence with a pending token must have sampled it in the step launched just before
        this one, and only that step may be in flight. Advances `num_computed`, `num_scored` and
        `pending`.
        """
        with torch.inference_mode():
            rows, logits = self._forward.step(chunks, self._sampled)
            step = LaunchedStep(chunks, rows, logits, self._sampled, self._nameless)
            # A failed row's -1 is no token id, and the next step may read it as one.
            self._sampled = step.tokens.clamp(min=0)
        rows.advance(chunks)
        return step

    def step(self, chunks: Seq[Chunk]) -> list[StepOutput]:
        """Run the chunks and wait; one output for each, in their order. Appends no token."""
        return self.launch(chunks).outputs() if chunks else []
