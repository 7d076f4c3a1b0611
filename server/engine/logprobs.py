"""Probabilities of tokens under the model's raw distribution. Knows nothing of how one is drawn."""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from server.engine.sequence import TokenLogprob

_MAX_SCORED = 1 << 23  # logits turned into float32 probabilities at a time: 32 MiB
_LOW_WORD = (1 << 32) - 1


def score(logits: Tensor, token_ids: Seq[int], top: Seq[int]) -> list[TokenLogprob]:
    """The log probability of one token per row, and those of the row's best tokens.

    Args:
        logits: [rows, vocab], as the model gave them.
        token_ids: the token of each row.
        top: how many best tokens each row wants.
    """
    at_once = max(_MAX_SCORED // logits.shape[-1], 1)
    scores: list[TokenLogprob] = []
    for first in range(0, len(token_ids), at_once):
        rows = slice(first, first + at_once)
        scores += _score(logits[rows].float().log_softmax(dim=-1), token_ids[rows], top[rows])
    return scores


def _score(logprobs: Tensor, token_ids: Seq[int], top: Seq[int]) -> list[TokenLogprob]:
    index = torch.tensor(token_ids, device=logprobs.device)[:, None]
    chosen = logprobs.gather(-1, index)[:, 0].tolist()
    best_ids, best = (it.tolist() for it in best_tokens(logprobs, max(top)))
    return [
        TokenLogprob(token, logprob, tuple(zip(ids[:count], values[:count], strict=True)))
        for token, logprob, ids, values, count in zip(
            token_ids, chosen, best_ids, best, top, strict=True
        )
    ]


def best_tokens(logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row, largest first, of equals the lower token first.

    Args:
        logprobs: float32 [rows, vocab].

    Returns: token ids and values, each [rows, min(count, vocab)].
    """
    # topk takes any of equals; so rank whole numbers that are never equal: the float's bits, put
    # in the order of its value, above the token id counted backwards.
    bits = logprobs.contiguous().view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32
    ids = torch.arange(logprobs.shape[-1], device=logprobs.device)
    keys = (ordered + (_LOW_WORD - ids)).topk(min(count, len(ids))).values
    best = _LOW_WORD - (keys & _LOW_WORD)
    return best, logprobs.gather(-1, best)
