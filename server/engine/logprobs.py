"""Log probabilities of tokens under the model's raw distribution. Knows nothing of sampling."""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from server.engine.sequence import TokenLogprob

_MAX_SCORED = 1 << 23  # logits turned into float32 probabilities at a time: 32 MiB
_LOW_WORD = (1 << 32) - 1


def logprob_tensors(
    logits: Tensor, token_ids: Tensor, top: int, nameless: Tensor | None = None
) -> list[Tensor]:
    """The tensors that `token_logprobs` needs, computed on the device without waiting for it.

    Args:
        logits: [rows, vocab], as the model gave them.
        token_ids: int64 [rows], the token of each row.
        top: how many best tokens to find for each row.
        nameless: int64, ids without a token: never among the best. Their share of the
            probability stays theirs.

    Returns: the tokens' logprobs [rows]; ids and logprobs of the best, each [rows, top].
    """
    at_once = max(_MAX_SCORED // logits.shape[-1], 1)
    parts = [
        _score(logits[first : first + at_once], token_ids[first : first + at_once], top, nameless)
        for first in range(0, max(len(token_ids), 1), at_once)
    ]
    return [torch.cat(them) for them in zip(*parts, strict=True)]


def token_logprobs(token_ids: Seq[int], top: Seq[int], tensors: Seq[Tensor]) -> list[TokenLogprob]:
    """The scores of each row, from the results of `logprob_tensors`, copied to the host."""
    chosen, best_ids, best = (it.tolist() for it in tensors)
    return [
        TokenLogprob(token, logprob, tuple(zip(ids[:count], values[:count], strict=True)))
        for token, logprob, ids, values, count in zip(
            token_ids, chosen, best_ids, best, top, strict=True
        )
    ]


def _score(
    logits: Tensor, token_ids: Tensor, top: int, nameless: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logprobs.gather(-1, token_ids[:, None])[:, 0]
    if nameless is not None:
        logprobs.index_fill_(1, nameless, -torch.inf)
    return chosen, *best_tokens(logprobs, top)


def best_tokens(logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row, largest first, of equals the lower token first.

    Args:
        logprobs: float32 [rows, vocab].

    Returns: token ids and values, each [rows, min(count, vocab)].
    """
    # topk takes any of equal values. So rank whole numbers that are never equal: the float's bits,
    # changed so that they sort as the float does, above the token id counted backwards.
    bits = logprobs.contiguous().view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32
    ids = torch.arange(logprobs.shape[-1], device=logprobs.device)
    keys = (ordered + (_LOW_WORD - ids)).topk(min(count, len(ids))).values
    best = _LOW_WORD - (keys & _LOW_WORD)
    return best, logprobs.gather(-1, best)
