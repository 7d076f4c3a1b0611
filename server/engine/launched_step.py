"""A launched step: which rows need logits, and how tokens and scores reach the host.

Knows no model and no queue.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from server.engine.device import HostCopies, to_device
from server.engine.logprobs import logprob_tensors, token_logprobs
from server.engine.sampler import sample
from server.engine.sequence import Chunk, Sequence, StepOutput, TokenLogprob

NOT_FINITE = "the logits are not finite for this prompt, and will not be if it is sent again"


class LogitRows:
    """The rows of a flat batch that need logits: first those that sample, then those scored.

    Must be built before the step advances its sequences.

    Args:
        chunks: in the order of the flat batch. starts: the first flat row of each.

    Attributes:
        rows: of the flat batch.
        sampled: the sequences of the first rows, in their order.
        with_logprobs: which of the first rows need the logprobs of their sampled token.
        scored: of each of the other rows, the sequence and the position that the row scores.
        pending: flat rows of pending tokens, and the index of each among the tokens sampled last.
    """

    def __init__(self, chunks: Seq[Chunk], starts: Seq[int]) -> None:
        self.sampled: list[Sequence] = []
        self.scored: list[tuple[Sequence, int]] = []
        self.pending: list[tuple[int, int]] = []
        self.with_logprobs: list[int] = []
        sampled_rows: list[int] = []
        scored_rows: list[int] = []
        for (sequence, length), start in zip(chunks, starts, strict=True):
            if length == sequence.remaining:
                if sequence.params.top_logprobs is not None:
                    self.with_logprobs.append(len(self.sampled))
                self.sampled.append(sequence)
                sampled_rows.append(start + length - 1)
                if sequence.pending:
                    self.pending.append((start + length - 1, sequence.source))
            if sequence.params.prompt_logprobs:
                for position in _scored_positions(sequence, length):
                    self.scored.append((sequence, position))
                    scored_rows.append(start + position - 1 - sequence.num_computed)
        self.rows = [*sampled_rows, *scored_rows]

    def advance(self, chunks: Seq[Chunk]) -> None:
        """Advance the sequences of the launched step."""
        for sequence, length in chunks:
            sequence.num_computed += length
        for source, sequence in enumerate(self.sampled):
            sequence.pending += 1
            sequence.source = source
        for sequence, _ in self.scored:
            sequence.num_scored += 1


def _scored_positions(sequence: Sequence, length: int) -> range:
    """Positions of the prompt that this chunk's logits score and no earlier step scored."""
    first = max(sequence.num_computed + 1, sequence.num_scored)
    return range(first, min(sequence.num_computed + length + 1, len(sequence.prompt)))


class LaunchedStep:
    """A launched step.

    Args:
        logits: [rows, vocab] of `rows.rows`; changed in place.
        last: the tokens that the step launched before this one samples.
        nameless: see `sample`.

    Attributes:
        tokens: the sampled tokens, int64 on the device; -1 for a failed row.
    """

    def __init__(
        self,
        chunks: Seq[Chunk],
        rows: LogitRows,
        logits: Tensor,
        last: Tensor | None,
        nameless: Tensor | None = None,
    ) -> None:
        self._chunks = chunks
        self._sampled = rows.sampled
        self._scored = rows.scored
        self._nameless = nameless
        count = len(rows.sampled)
        prompt_scores = self._score_prompts(logits[count:]) if rows.scored else []
        self._with_logprobs = [rows.sampled[row] for row in rows.with_logprobs]
        at = raw = None
        if rows.with_logprobs:
            at = to_device(rows.with_logprobs, torch.int64, logits.device)
            raw = logits[at]  # a copy, from before penalties
        self.tokens = sample(logits[:count], rows.sampled, last, nameless)
        token_scores: list[Tensor] = []
        if at is not None and raw is not None:
            most = max(it.params.top_logprobs or 0 for it in self._with_logprobs)
            token_scores = logprob_tensors(raw, self.tokens[at].clamp(min=0), most, nameless)
        self._copies = HostCopies([self.tokens, *token_scores, *prompt_scores])

    def outputs(self) -> list[StepOutput]:
        """The output of each chunk, in their order; waits for the device. Call it once.

        The tokens are no longer pending from then on: the caller appends them to `output`.
        """
        tokens, *scores = self._copies.wait()
        known: dict[Sequence, int] = dict(zip(self._sampled, tokens.tolist(), strict=True))
        for sequence in self._sampled:
            sequence.pending -= 1
        if not scores and min(known.values(), default=0) >= 0:
            ran = [sequence for sequence, _ in self._chunks]
            return list(map(StepOutput, ran, map(known.get, ran)))
        token_scores = self._token_scores(known, scores[:3]) if self._with_logprobs else {}
        prompt_scores = self._prompt_scores(scores[-3:]) if self._scored else {}
        return [
            _output(it, known.get(it), token_scores.get(it), prompt_scores.get(it))
            for it, _ in self._chunks
        ]

    def _score_prompts(self, logits: Tensor) -> list[Tensor]:
        ids = [sequence.prompt[position] for sequence, position in self._scored]
        most = max(sequence.params.top_logprobs or 0 for sequence, _ in self._scored)
        token_ids = to_device(ids, torch.int64, logits.device)
        return logprob_tensors(logits, token_ids, most, self._nameless)

    def _token_scores(
        self, known: Mapping[Sequence, int], scores: Seq[Tensor]
    ) -> dict[Sequence, TokenLogprob]:
        top = [it.params.top_logprobs or 0 for it in self._with_logprobs]
        entries = token_logprobs([max(known[it], 0) for it in self._with_logprobs], top, scores)
        return dict(zip(self._with_logprobs, entries, strict=True))

    def _prompt_scores(self, scores: Seq[Tensor]) -> dict[Sequence, list[TokenLogprob]]:
        ids = [sequence.prompt[position] for sequence, position in self._scored]
        top = [sequence.params.top_logprobs or 0 for sequence, _ in self._scored]
        by_sequence: dict[Sequence, list[TokenLogprob]] = {}
        entries = token_logprobs(ids, top, scores)
        for (sequence, _), entry in zip(self._scored, entries, strict=True):
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
