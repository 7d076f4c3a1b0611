"""The most likely answers of several adapters and of the base, in one batch. Knows no jobs.

The training model generates them, without an engine: for a few dozen tokens now and then.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from server.adapters.learning.trainable import TrainableAdapter, active_together
from server.bases.model import BaseModel
from server.training.run.batches import micro_batches
from server.training.run.loss import head_reads, picked

log = logging.getLogger(__name__)

_NO_TOKEN = -1


@dataclass(frozen=True, eq=False)
class GreedyRequest:
    """A prompt, as tokens, for an adapter, or for the base as it is (None).

    `ends` are the tokens that end its answer.
    """

    prompt: Sequence[int]
    adapter: TrainableAdapter | None
    ends: frozenset[int]


def answer(
    base: BaseModel, requests: Sequence[GreedyRequest], *, max_new: int, max_tokens: int
) -> list[list[int]]:
    """The greedy answer to each, in order: at most `max_new` tokens, the one that ends it included.

    Args:
        requests: prompts that leave room for `max_new` tokens in the context.
        max_tokens: positions of one batch, padding included; a longer prompt is a batch alone.
    """
    answers: dict[int, list[int]] = {}
    lengths = [len(one.prompt) + max_new for one in requests]
    for part in micro_batches(range(len(requests)), lengths, max_tokens):
        # Each adapter's rows lie next to each other; id() only brings them together.
        order = sorted(part, key=lambda index: id(requests[index].adapter))
        rows = [requests[index] for index in order]
        columns = torch.stack(list(_tokens(base, rows, max_new))).T.tolist()
        for index, tokens in zip(order, columns, strict=True):
            answers[index] = _ended(tokens, requests[index].ends)
    return [answers[index] for index in range(len(requests))]


def answer_all(
    base: BaseModel, groups: Sequence[Sequence[GreedyRequest]], *, max_new: int, max_tokens: int
) -> list[list[list[int]] | None]:
    """The answers to several groups, as `answer`. What fails for all is tried for each group: None
    if it fails again. Raises nothing: a missing sample is no reason for a job to fail."""
    try:
        answers = answer(
            base, [one for group in groups for one in group], max_new=max_new, max_tokens=max_tokens
        )
    except Exception as error:
        if len(groups) == 1:
            log.warning("no sample answers: %s", error, exc_info=True)
            return [None]
        sizes = {"max_new": max_new, "max_tokens": max_tokens}
        return [one for group in groups for one in answer_all(base, [group], **sizes)]
    each = iter(answers)
    return [[next(each) for _ in group] for group in groups]


def _tokens(base: BaseModel, rows: Sequence[GreedyRequest], max_new: int) -> Iterator[Tensor]:
    """The tokens of each step [rows], until all rows have ended; what follows an end is no use."""
    device = base.device
    longest = max(len(row.prompt) for row in rows)
    gaps = [longest - len(row.prompt) for row in rows]
    tokens = torch.tensor(
        [[0] * gap + list(row.prompt) for gap, row in zip(gaps, rows, strict=True)], device=device
    )
    mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=device)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    every = torch.arange(len(rows), device=device)
    most = max(len(row.ends) for row in rows)
    ends = [[*row.ends, *[_NO_TOKEN] * (most - len(row.ends))] for row in rows]
    stops = torch.tensor(ends, dtype=torch.long, device=device)  # [rows, most]
    going = torch.ones(len(rows), dtype=torch.bool, device=device)
    # transformers renamed the cache, as an argument and in the output, in 5.24.
    parameters = inspect.signature(base.model.forward).parameters
    cache_name = "cache" if "cache" in parameters else "past_key_values"
    cache = None
    for _ in range(max_new):
        width = tokens.shape[1]
        last = torch.full_like(every, width - 1)
        with torch.no_grad(), _active(base, rows, width), head_reads(base, every, last):
            output = base.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=places,
                use_cache=True,
                **{cache_name: cache},
            )
        cache = output[cache_name]
        logits = picked(output.logits, every, last)
        if base.nameless is not None:
            logits = logits.index_fill(1, base.nameless, -torch.inf)
        chosen = logits.argmax(-1)
        yield chosen
        going &= (chosen[:, None] != stops).all(1)
        if not going.any():
            return
        tokens, places = chosen[:, None], places[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)


@contextmanager
def _active(base: BaseModel, rows: Sequence[GreedyRequest], width: int) -> Iterator[None]:
    shares: list[tuple[TrainableAdapter | None, int]] = []
    for _, group in groupby((row.adapter for row in rows), key=id):
        adapters = list(group)
        shares.append((adapters[0], len(adapters) * width))
    with active_together(base, shares):
        yield


def _ended(tokens: Sequence[int], stops: frozenset[int]) -> list[int]:
    """Up to the first stop, that included."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return list(tokens[: end + 1])
