"""From logits to tokens, all rows of a step at once. Knows nothing of models or caches.

A row's logits are changed in this order: repetition penalty (tokens of prompt and answer), presence
and frequency penalties (tokens of the answer), logit_bias; then temperature; then the row keeps the
tokens that are among the `top_k` best, in the smallest set of those that holds `top_p` of their
mass, and at least `min_p` times as probable as the best. Each of the three is a least probability,
so equal tokens are kept or dropped together and no row needs an order among equals.
"""

from collections.abc import Sequence as Seq
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from server.engine.sequence import SamplingParams, Sequence

_HEAD = 64  # so many best tokens mostly hold top_p's share; the others look at more
_WIDER = 16
_MAX_DRAWN = 1 << 23  # probabilities summed at a time, in float64: 64 MiB
_COLDEST = 1e-6  # below it a quotient of logits leaves float32


def sample(logits: Tensor, sequences: Seq[Sequence]) -> list[int | None]:
    """The next token of each row; None where the logits are not finite.

    Args:
        logits: [rows, vocab], one row for each sequence. Changed in place.
    """
    logits = _adjust(logits, sequences)
    best, token_ids = logits.max(dim=-1)  # the first of equals; nan if the row holds one
    drawn = [row for row, it in enumerate(sequences) if it.params.temperature > 0]
    at_once = max(_MAX_DRAWN // logits.shape[-1], 1)
    for first in range(0, len(drawn), at_once):
        rows = drawn[first : first + at_once]
        index = torch.tensor(rows, device=logits.device)
        token_ids[index] = _draw(logits[index], best[index], [sequences[row] for row in rows])
    picked: list[int] = torch.where(best.isfinite(), token_ids, -1).tolist()
    return [None if token < 0 else token for token in picked]


def uniform(sequence: Sequence) -> float:
    """The number in [0, 1) that draws the sequence's next token.

    It depends on the seed and on the token's place in the answer alone, so that a seed gives the
    same answer whatever else is in the batch and however often the sequence is computed again.
    """
    key = sequence.seed % (1 << 64)  # a seed may be any whole number, and negative too
    bits = np.random.Philox(key=key, counter=len(sequence.output)).random_raw()
    return float((bits >> 12) * 2.0**-52)  # 52 bits: u * total is always below total


def _draw(logits: Tensor, best: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """Tokens drawn by inverting the cumulative distribution, int64 [rows]."""
    params = [it.params for it in sequences]
    table = [
        [max(it.params.temperature, _COLDEST), it.params.min_p, uniform(it)] for it in sequences
    ]
    numbers = torch.tensor(table, dtype=torch.float64).to(logits.device)
    temperature, min_p, position = numbers.T[..., None].unbind()
    # The best token weighs 1, so that nothing overflows and min_p compares with it as it stands.
    weights = logits.float().sub(best.float()[:, None]).div_(temperature.float()).exp_()
    least = min_p.float()
    cut = [row for row, it in enumerate(params) if it.top_k > 0 or it.top_p < 1]
    if cut:
        index = torch.tensor(cut, device=logits.device)
        bounds = torch.tensor(
            [[params[row].top_k, params[row].top_p] for row in cut], dtype=torch.float64
        )
        top_k, top_p = bounds.to(logits.device).unbind(dim=1)
        kept = _least_kept(weights[index], top_k, top_p)
        least[index] = torch.maximum(least[index], kept[:, None])
    if cut or any(it.min_p > 0 for it in params):
        weights.masked_fill_(weights < least, 0)
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, position * cumulative[:, -1:], right=True)[:, 0]


def _least_kept(weights: Tensor, top_k: Tensor, top_p: Tensor, head: int = _HEAD) -> Tensor:
    """The least weight that top_k and top_p keep, float32 [rows].

    Args:
        weights: float32 [rows, vocab], not negative.
        top_k: [rows], 0 for all. top_p: [rows].
        head: how many of the best tokens to look at; more for the rows that turn out to need more.
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
    # Rounding must not end a row early that asked for all of its mass.
    share = torch.where(top_p[:, None] < 1, top_p[:, None] * whole, torch.inf)
    end = torch.minimum((sums < share).sum(dim=-1, keepdim=True), last)
    least = ranked.gather(-1, end)[:, 0]
    settled = (top_k <= head) | ((top_k == vocab) & (sums[:, -1:] >= share)[:, 0])
    open_rows = (~settled).nonzero()[:, 0]
    if len(open_rows):
        least[open_rows] = _least_kept(
            weights[open_rows], top_k[open_rows], top_p[open_rows], head * _WIDER
        )
    return least


def _adjust(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """Penalties and logit_bias on the rows that ask for them; other rows cost nothing."""
    rows = [row for row, it in enumerate(sequences) if _changes_logits(it.params)]
    if not rows:
        return logits
    logits = logits.float()
    index = torch.tensor(rows, device=logits.device)
    chosen = [sequences[row] for row in rows]
    logits[index] = _with_bias(_with_penalties(logits[index], chosen), chosen)
    return logits


def _changes_logits(params: SamplingParams) -> bool:
    return bool(
        params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1
        or params.logit_bias
    )


def _with_penalties(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """Repetition divides positive and multiplies negative logits (CTRL, arXiv 1909.05858)."""
    params = [it.params for it in sequences]
    table = [[p.repetition_penalty, p.frequency_penalty, p.presence_penalty] for p in params]
    numbers = torch.tensor(table, dtype=logits.dtype, device=logits.device)
    repetition, frequency, presence = numbers.T[..., None].unbind()
    answered = _counts(logits, [it.output for it in sequences])
    if any(p.repetition_penalty != 1 for p in params):
        seen = _counts(logits, [it.prompt for it in sequences]).add_(answered) > 0
        factor = torch.where(logits > 0, 1 / repetition, repetition)
        logits = torch.where(seen, logits * factor, logits)
    return logits - frequency * answered - presence * (answered > 0)


def _counts(logits: Tensor, tokens: Seq[Seq[int]]) -> Tensor:
    """How often each row's tokens hold each token of the vocabulary, like `logits`."""
    rows, vocab = logits.shape
    starts = np.repeat(np.arange(rows) * vocab, [len(ids) for ids in tokens])
    flat = starts + np.fromiter(chain.from_iterable(tokens), np.int64, len(starts))
    places = torch.from_numpy(flat).to(logits.device)
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
    places = torch.tensor([rows, tokens], device=logits.device)
    values = torch.tensor(biases, dtype=logits.dtype, device=logits.device)
    return logits.index_put_(tuple(places.unbind()), values, accumulate=True)
