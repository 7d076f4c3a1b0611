"""What a launched step will bring: which rows give tokens and scores, and their way to the host."""

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from server.engine.device import HostCopies, to_device
from server.engine.logprobs import logprob_tensors, token_logprobs
from server.engine.sampler import sample
from server.engine.sequence import Chunk, Sequence, StepOutput, TokenLogprob

NOT_FINITE = "the model's logits are not finite: the adapter or the base overflows in this dtype"


class LogitRows:
    """The rows of a flat batch that need logits: first those that sample, then those scored.

    Built before the step is launched, from what its sequences have computed until then.

    Args:
        chunks: in the order of the flat batch. starts: the first flat row of each.

    Attributes:
        rows: of the flat batch.
        sampled: the sequences of the first rows, in their order.
        asked: those of the first rows whose sequences want logprobs.
        scored: of each of the other rows, the sequence and the position that the row scores.
        patches: flat rows of pending tokens, and where each is among the tokens sampled last.
    """

    def __init__(self, chunks: Seq[Chunk], starts: Seq[int]) -> None:
        self.sampled: list[Sequence] = []
        self.scored: list[tuple[Sequence, int]] = []
        self.patches: list[tuple[int, int]] = []
        self.asked: list[int] = []
        sampled_rows: list[int] = []
        scored_rows: list[int] = []
        for (sequence, length), start in zip(chunks, starts, strict=True):
            if length == sequence.remaining:
                if sequence.params.top_logprobs is not None:
                    self.asked.append(len(self.sampled))
                self.sampled.append(sequence)
                sampled_rows.append(start + length - 1)
                if sequence.pending:
                    self.patches.append((start + length - 1, sequence.source))
            if sequence.params.prompt_logprobs:
                for position in _scored_positions(sequence, length):
                    self.scored.append((sequence, position))
                    scored_rows.append(start + position - 1 - sequence.num_computed)
        self.rows = [*sampled_rows, *scored_rows]

    def advance(self, chunks: Seq[Chunk]) -> None:
        """The step is launched: its sequences have computed, sampled and scored."""
        for sequence, length in chunks:
            sequence.num_computed += length
        for source, sequence in enumerate(self.sampled):
            sequence.pending += 1
            sequence.source = source
        for sequence, _ in self.scored:
            sequence.num_scored += 1


def _scored_positions(sequence: Sequence, length: int) -> range:
    """Positions of the prompt that the chunk's logits score and that no earlier step scored."""
    first = max(sequence.num_computed + 1, sequence.num_scored)
    return range(first, min(sequence.num_computed + length + 1, len(sequence.prompt)))


class LaunchedStep:
    """A launched step. `tokens`, int64 on the device, are what it samples: -1 for a failed row.

    Args:
        logits: [rows, vocab] of `wanted.rows`; changed in place.
        last: the tokens that the step launched before this one samples.
    """

    def __init__(
        self, chunks: Seq[Chunk], wanted: LogitRows, logits: Tensor, last: Tensor | None
    ) -> None:
        self._chunks = chunks
        self._sampled = wanted.sampled
        self._scored = wanted.scored
        count = len(wanted.sampled)
        prompt_scores = self._score_prompts(logits[count:]) if wanted.scored else []
        self._asked = [wanted.sampled[row] for row in wanted.asked]
        at = to_device(wanted.asked, torch.int64, logits.device) if wanted.asked else None
        raw = None if at is None else logits[at]  # a copy, from before penalties
        self.tokens = sample(logits[:count], wanted.sampled, last)
        token_scores: list[Tensor] = []
        if at is not None and raw is not None:
            most = max(it.params.top_logprobs or 0 for it in self._asked)
            token_scores = logprob_tensors(raw, self.tokens[at].clamp(min=0), most)
        self._arriving = HostCopies([self.tokens, *token_scores, *prompt_scores])

    def outputs(self) -> list[StepOutput]:
        """What each chunk gave, in their order; waits for the device. To be called once.

        What was pending is known from then on: the caller appends it to `output`.
        """
        tokens, *found = self._arriving.wait()
        known: dict[Sequence, int] = dict(zip(self._sampled, tokens.tolist(), strict=True))
        for sequence in self._sampled:
            sequence.pending -= 1
        if not found and min(known.values(), default=0) >= 0:
            ran = [sequence for sequence, _ in self._chunks]
            return list(map(StepOutput, ran, map(known.get, ran)))
        token_scores = self._token_scores(known, found[:3]) if self._asked else {}
        prompt_scores = self._prompt_scores(found[-3:]) if self._scored else {}
        return [
            _output(it, known.get(it), token_scores.get(it), prompt_scores.get(it))
            for it, _ in self._chunks
        ]

    def _score_prompts(self, logits: Tensor) -> list[Tensor]:
        ids = [sequence.prompt[position] for sequence, position in self._scored]
        most = max(sequence.params.top_logprobs or 0 for sequence, _ in self._scored)
        return logprob_tensors(logits, to_device(ids, torch.int64, logits.device), most)

    def _token_scores(
        self, known: Mapping[Sequence, int], found: Seq[Tensor]
    ) -> dict[Sequence, TokenLogprob]:
        top = [it.params.top_logprobs or 0 for it in self._asked]
        entries = token_logprobs([max(known[it], 0) for it in self._asked], top, found)
        return dict(zip(self._asked, entries, strict=True))

    def _prompt_scores(self, found: Seq[Tensor]) -> dict[Sequence, list[TokenLogprob]]:
        ids = [sequence.prompt[position] for sequence, position in self._scored]
        top = [sequence.params.top_logprobs or 0 for sequence, _ in self._scored]
        by_sequence: dict[Sequence, list[TokenLogprob]] = {}
        for (sequence, _), entry in zip(self._scored, token_logprobs(ids, top, found), strict=True):
            by_sequence.setdefault(sequence, []).append(entry)
        return by_sequence


def _output(
    sequence: Sequence,
    token: int | None,
    logprob: TokenLogprob | None,
    prompt_scores: list[TokenLogprob] | None,
) -> StepOutput:
    scored = () if prompt_scores is None else tuple(prompt_scores)
    if token is not None and token < 0:
        return StepOutput(sequence, None, None, scored, NOT_FINITE)
    return StepOutput(sequence, token, logprob, scored)
