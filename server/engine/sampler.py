"""From logits to tokens, all rows of a step at once. Knows nothing of models or caches.

A row's logits are changed in this order: repetition penalty (tokens of prompt and answer), presence
and frequency penalties (tokens of the answer), logit_bias; a row that is below its `min_tokens`
loses its end tokens; then temperature; then the row keeps the tokens that are among the `top_k`
best, in the smallest set of those that holds `top_p` of their mass, and at least `min_p` times as
probable as the best. Each of the three is a least probability, so equal tokens are kept or dropped
together and no row needs an order among equals.

On CUDA nothing here waits for the device: the host decides by the parameters alone.
"""

from collections.abc import Sequence as Seq
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from server.engine.device import to_device
from server.engine.sequence import Sequence

_HEAD = 64  # so many best tokens mostly hold top_p's share; other rows look at more
_WIDEN_BY = 16
_MAX_DRAWN = 1 << 24  # weights at a time: 64 MiB
_COLDEST = 1e-6  # below it a quotient of logits leaves float32
_BLOCK = 256  # tokens whose weights are summed before the drawn token is searched in them


def sample(
    logits: Tensor,
    sequences: Seq[Sequence],
    last: Tensor | None = None,
    nameless: Tensor | None = None,
) -> Tensor:
    """The next token of each row, int64 [rows]; -1 where the logits are not finite.

    Args:
        logits: [rows, vocab], one row for each sequence. Changed in place.
        last: the tokens that the step before sampled: those of sequences with a pending token.
        nameless: int64, ids without a token, whose columns are never drawn. None: there are none.
    """
    logits = _without_early_ends(_adjust(logits, sequences, last), sequences)
    if nameless is not None:
        logits.index_fill_(1, nameless, -torch.inf)  # behind the biases, which may be any number
    best, token_ids = logits.max(dim=-1)  # the first of equals; nan if the row holds one
    drawn = [row for row, it in enumerate(sequences) if it.params.temperature > 0]
    if drawn:
        table = to_device(
            [_draw_inputs(row, sequences[row]) for row in drawn], torch.float64, logits.device
        )
        at_once = max(_MAX_DRAWN // logits.shape[-1], 1)
        for first in range(0, len(drawn), at_once):
            part = slice(first, first + at_once)
            rows = table[part, 0].long()
            cuts = _Cuts([sequences[row] for row in drawn[part]])
            token_ids[rows] = _draw(logits[rows], best[rows], table[part, 1:], cuts)
    return torch.where(best.isfinite(), token_ids, -1)


def uniform(sequence: Sequence) -> float:
    """The number in [0, 1) that draws the sequence's next token."""
    return sequence.draws.at(len(sequence.output) + sequence.pending)


def _draw_inputs(row: int, sequence: Sequence) -> tuple[float, ...]:
    it = sequence.params
    temperature = max(it.temperature, _COLDEST)
    return row, temperature, uniform(sequence), it.min_p, it.top_k, it.top_p


class _Cuts:
    """Which rows cut off tokens by top_k, top_p or min_p, by their parameters alone."""

    def __init__(self, sequences: Seq[Sequence]) -> None:
        params = [it.params for it in sequences]
        self.rows = [row for row, it in enumerate(params) if it.top_k > 0 or it.top_p < 1]
        self.any = bool(self.rows) or any(it.min_p > 0 for it in params)


def _draw(logits: Tensor, best: Tensor, numbers: Tensor, cuts: _Cuts) -> Tensor:
    """Tokens drawn by inverting the cumulative distribution, int64 [rows].

    Args:
        numbers: float64 [rows, 5], the results of `_draw_inputs` without the row.
    """
    temperature, position, least, top_k, top_p = numbers.unbind(dim=1)
    rows, vocab = logits.shape
    # The best token weighs 1, so that nothing overflows and min_p compares with it as it stands.
    padded = logits.new_full((rows, -(-vocab // _BLOCK) * _BLOCK), -torch.inf, dtype=torch.float32)
    padded[:, :vocab] = logits
    weights = padded.sub_(best.float()[:, None]).div_(temperature.float()[:, None]).exp_()
    if cuts.any:
        least = least.float()
        if cuts.rows:
            some = to_device(cuts.rows, torch.int64, logits.device)
            threshold = _threshold(weights[some, :vocab], top_k[some], top_p[some])
            least = least.index_put((some,), torch.maximum(least[some], threshold))
        weights.masked_fill_(weights < least[:, None], 0)
    return _invert(weights, position)


def _invert(weights: Tensor, position: Tensor) -> Tensor:
    """The first token up to which the weights add up to more than `position` of their sum.

    Args:
        weights: float32 [rows, n * _BLOCK], not negative.
        position: float64 [rows], in [0, 1).
    """
    blocks = weights.view(len(weights), -1, _BLOCK)
    sums = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = position[:, None] * sums[:, -1:]
    # Clamped for rows that are not finite: the search goes beyond their end.
    block = torch.searchsorted(sums, target, right=True).clamp_(max=sums.shape[1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp_(min=0)), 0.0)
    within = blocks.gather(1, block[:, :, None].expand(-1, 1, _BLOCK))[:, 0]
    cumulative = within.cumsum(dim=-1, dtype=torch.float64)
    # Rounding may leave the target at or beyond the block's end: then its last token that weighs.
    below_all = torch.nextafter(cumulative[:, -1:], torch.zeros_like(target))
    rest = torch.minimum(target - before, below_all)
    at = torch.searchsorted(cumulative, rest, right=True).clamp_(max=_BLOCK - 1)
    return (block * _BLOCK + at)[:, 0]


def _threshold(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    if not weights.is_cuda:
        return threshold_by_rank(weights, top_k, top_p)
    from server.engine.kernels.sampling_threshold import sampling_threshold  # needs triton

    return sampling_threshold(weights, top_k, top_p)


def threshold_by_rank(weights: Tensor, top_k: Tensor, top_p: Tensor, head: int = _HEAD) -> Tensor:
    """The least weight that top_k and top_p keep, float32 [rows]. Waits for the device.

    Args:
        weights: float32 [rows, vocab], not negative.
        top_k: [rows], 0 for all. top_p: [rows].
        head: how many of the best tokens to rank at first; rows that need more rank more.
    """
    vocab = weights.shape[-1]
    head = min(head, vocab)
    ranked = weights.topk(head).values
    sums = ranked.cumsum(dim=-1, dtype=torch.float64)
    top_k = torch.where(top_k > 0, top_k, vocab).clamp(max=vocab).long()
    last = top_k.clamp(max=head)[:, None] - 1
    whole = torch.where(
        top_k[:, None] <= head, sums.gather(-1, last), weights.sum(-1, True, dtype=torch.float64)
    )
    # With top_p = 1, rounding must not cut off the last tokens.
    share = torch.where(top_p[:, None] < 1, top_p[:, None] * whole, torch.inf)
    end = torch.minimum((sums < share).sum(dim=-1, keepdim=True), last)
    least = ranked.gather(-1, end)[:, 0]
    settled = (top_k <= head) | ((top_k == vocab) & (sums[:, -1:] >= share)[:, 0])
    open_rows = (~settled).nonzero()[:, 0]
    if len(open_rows):
        least[open_rows] = threshold_by_rank(
            weights[open_rows], top_k[open_rows], top_p[open_rows], head * _WIDEN_BY
        )
    return least


def _adjust(logits: Tensor, sequences: Seq[Sequence], last: Tensor | None) -> Tensor:
    """Penalties and logit_bias, on the rows whose requests have them; other rows cost nothing."""
    rows = [row for row, it in enumerate(sequences) if it.params.changes_logits]
    if not rows:
        return logits
    logits = logits.float()
    index = to_device(rows, torch.int64, logits.device)
    chosen = [sequences[row] for row in rows]
    logits[index] = _with_bias(_with_penalties(logits[index], chosen, last), chosen)
    return logits


def _without_early_ends(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """No end token in the rows of answers that must go on. Ids that the model lacks are no ends."""
    early = [(row, it.ends) for row, it in enumerate(sequences) if not it.may_end]
    known = range(logits.shape[1])
    places = [(row, token) for row, ends in early for token in ends if token in known]
    if not places:
        return logits
    index = to_device(places, torch.int64, logits.device).unbind(dim=1)
    return logits.index_put_(index, logits.new_tensor(-torch.inf))


def _with_penalties(logits: Tensor, sequences: Seq[Sequence], last: Tensor | None) -> Tensor:
    """Repetition divides positive and multiplies negative logits (CTRL, arXiv 1909.05858)."""
    params = [it.params for it in sequences]
    table = [[p.repetition_penalty, p.frequency_penalty, p.presence_penalty] for p in params]
    numbers = to_device(table, logits.dtype, logits.device)
    repetition, frequency, presence = numbers.T[..., None].unbind()
    answered = _answered(logits, sequences, last)
    if any(p.repetition_penalty != 1 for p in params):
        seen = _counts(logits, [it.prompt for it in sequences]).add_(answered) > 0
        factor = torch.where(logits > 0, 1 / repetition, repetition)
        logits = torch.where(seen, logits * factor, logits)
    return logits - frequency * answered - presence * (answered > 0)


def _answered(logits: Tensor, sequences: Seq[Sequence], last: Tensor | None) -> Tensor:
    """How often each answer holds each token, its pending token included."""
    counts = _counts(logits, [it.output for it in sequences])
    pending = [(row, it.source) for row, it in enumerate(sequences) if it.pending]
    if pending:
        assert last is not None
        rows, sources = to_device(pending, torch.int64, logits.device).unbind(dim=1)
        counts[rows, last[sources].clamp(min=0)] += 1  # -1: the answer has failed already
    return counts


def _counts(logits: Tensor, tokens: Seq[Seq[int]]) -> Tensor:
    """How often each row's tokens hold each token of the vocabulary, like `logits`."""
    rows, vocab = logits.shape
    starts = np.repeat(np.arange(rows) * vocab, [len(ids) for ids in tokens])
    flat = starts + np.fromiter(chain.from_iterable(tokens), np.int64, len(starts))
    places = torch.from_numpy(flat)
    if logits.is_cuda:
        places = places.pin_memory().to(logits.device, non_blocking=True)
    counts = torch.zeros(rows * vocab, dtype=logits.dtype, device=logits.device)
    counts.scatter_add_(0, places, torch.ones_like(places, dtype=logits.dtype))
    return counts.view(rows, vocab)


def _with_bias(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    entries = [
        (row, token, bias)
        for row, it in enumerate(sequences)
        for token, bias in it.params.logit_bias
    ]
    if not entries:
        return logits
    rows, tokens, biases = zip(*entries, strict=True)
    places = to_device([rows, tokens], torch.int64, logits.device)
    values = to_device(biases, logits.dtype, logits.device)
    return logits.index_put_(tuple(places.unbind()), values, accumulate=True)
