"""One step: a mixed batch of chunks through the model, and a token for each that is complete.

Knows no queue and no text. It reads sequences and advances what they have computed; blocks are
given and tokens are appended by the scheduler.
"""

from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from server.adapters.residency import ResidentAdapters
from server.bases.model import BaseModel
from server.engine import attention
from server.engine.kv_cache import KVCache
from server.engine.layout import Layout
from server.engine.logprobs import score
from server.engine.sampler import sample
from server.engine.sequence import Chunk, Sequence, StepOutput, TokenLogprob
from server.engine.support import Trial, check_config

NOT_FINITE = "the model's logits are not finite: the adapter or the base overflows in this dtype"


class Runner:
    """Runs steps of `base` with `adapters` (None: of the base alone), keys and values in `kv`.

    From here on the model's attention is the engine's: it no longer runs without a `Runner`.
    Construction runs a short prompt through the model as it was and through the engine.

    Raises:
        UnsupportedModel: the engine cannot run this model exactly.
    """

    def __init__(self, base: BaseModel, adapters: ResidentAdapters | None, kv: KVCache) -> None:
        self._model = base.model
        self._adapters = adapters
        self._kv = kv
        check_config(base)
        if self._model.config._attn_implementation == attention.NAME:  # an earlier Runner's
            self._model.set_attn_implementation("sdpa")
        trial = Trial(base, kv)
        attention.register()
        self._model.set_attn_implementation(attention.NAME)
        trial.check(self._forward)

    def step(self, chunks: Seq[Chunk]) -> list[StepOutput]:
        """Run the chunks; one output for each, in their order.

        Each sequence must hold blocks for its tokens up to the chunk's end, and stand in one chunk
        only. `num_computed` and `num_scored` advance; the token is not appended to `output`.
        """
        if not chunks:
            return []
        layout = Layout(chunks, self._kv)
        wanted = _Wanted(layout)
        with torch.inference_mode():
            logits = self._forward(layout, wanted.rows)
            outputs = wanted.outputs(logits)
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.num_computed += chunk.length
            sequence.num_scored += len(outputs[sequence].prompt_logprobs)
        return [outputs[chunk.sequence] for chunk in chunks]

    def _forward(self, layout: Layout, rows: Seq[int]) -> Tensor:
        """Logits [rows, vocab] of the given rows of the flat batch."""
        with self._adapted(layout.slots):
            output = self._model(
                input_ids=layout.token_ids[None],
                position_ids=layout.positions[None],
                use_cache=False,
                logits_to_keep=torch.tensor(
                    rows, dtype=torch.int64, device=layout.positions.device
                ),
                paged=layout,
            )
        logits: Tensor = output.logits[0]
        return logits

    def _adapted(self, slots: Seq[int]) -> AbstractContextManager[None]:
        if self._adapters is not None:
            return self._adapters.use(self._adapters.batch(slots))
        if any(slots):
            raise ValueError("a sequence has an adapter's slot, but this Runner has no adapters")
        return nullcontext()


class _Wanted:
    """The rows of a flat batch that need logits: first those that sample, then those scored."""

    def __init__(self, layout: Layout) -> None:
        self._sequences = [chunk.sequence for chunk in layout.chunks]
        self._sampled: list[Sequence] = []
        self._scored: list[tuple[Sequence, int]] = []  # and the position that the row scores
        sampled_rows: list[int] = []
        scored_rows: list[int] = []
        for chunk, start in zip(layout.chunks, layout.starts, strict=True):
            sequence = chunk.sequence
            if chunk.completes:
                self._sampled.append(sequence)
                sampled_rows.append(start + chunk.length - 1)
            for position in _scored_positions(chunk):
                self._scored.append((sequence, position))
                scored_rows.append(start + position - 1 - sequence.num_computed)
        self.rows = [*sampled_rows, *scored_rows]

    def outputs(self, logits: Tensor) -> dict[Sequence, StepOutput]:
        """What each sequence gets from the logits of `rows`, which are changed in place."""
        prompt_scores = self._prompt_scores(logits[len(self._sampled) :])
        tokens, scores = self._sample(logits[: len(self._sampled)])
        return {
            sequence: StepOutput(
                sequence,
                tokens.get(sequence),
                scores.get(sequence),
                tuple(prompt_scores.get(sequence, ())),
                NOT_FINITE if sequence in tokens and tokens[sequence] is None else None,
            )
            for sequence in self._sequences
        }

    def _sample(
        self, logits: Tensor
    ) -> tuple[dict[Sequence, int | None], dict[Sequence, TokenLogprob]]:
        asked = [row for row, it in enumerate(self._sampled) if it.params.top_logprobs is not None]
        raw = logits[asked] if asked else None  # a copy, from before penalties
        tokens = sample(logits, self._sampled) if self._sampled else []
        by_sequence = dict(zip(self._sampled, tokens, strict=True))
        if raw is None:
            return by_sequence, {}
        sequences = [self._sampled[row] for row in asked]
        scores = score(
            raw,
            [tokens[row] or 0 for row in asked],
            [it.params.top_logprobs or 0 for it in sequences],
        )
        known = (
            pair for pair in zip(sequences, scores, strict=True) if by_sequence[pair[0]] is not None
        )
        return by_sequence, dict(known)

    def _prompt_scores(self, logits: Tensor) -> dict[Sequence, list[TokenLogprob]]:
        by_sequence: dict[Sequence, list[TokenLogprob]] = {}
        scores = score(
            logits,
            [sequence.prompt[position] for sequence, position in self._scored],
            [sequence.params.top_logprobs or 0 for sequence, _ in self._scored],
        )
        for (sequence, _), it in zip(self._scored, scores, strict=True):
            by_sequence.setdefault(sequence, []).append(it)
        return by_sequence


def _scored_positions(chunk: Chunk) -> range:
    """Positions of the prompt that the chunk's logits score and that no earlier step scored."""
    sequence = chunk.sequence
    if not sequence.params.prompt_logprobs:
        return range(0)
    first = max(sequence.num_computed + 1, sequence.num_scored)
    return range(first, min(sequence.num_computed + chunk.length + 1, len(sequence.prompt)))
