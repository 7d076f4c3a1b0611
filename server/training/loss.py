"""Cross-entropy on the tokens that count, and no work on the others. Knows no adapter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from server.bases.model import BaseModel
from server.training.examples import Example


@dataclass(frozen=True)
class Score:
    """How well the tokens that count are predicted: mean loss in nats, share of exact hits."""

    loss: float
    accuracy: float


class Sums:
    """Loss and hits of several parts of a batch. Read once, at the end: a reading waits for the
    accelerator."""

    def __init__(self) -> None:
        self._loss: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._count = 0

    def add(self, losses: Tensor, hits: Tensor) -> None:
        """Add counted tokens: what `counted_losses` gave, or a part of it."""
        self._loss.append(losses.detach().sum())
        self._hits.append(hits.sum())
        self._count += len(losses)

    def score(self) -> Score:
        """The mean over all counted tokens."""
        loss = torch.stack(self._loss).double().sum().item()
        hits = torch.stack(self._hits).sum().item()
        return Score(loss / self._count, hits / self._count)


def positions(examples: Sequence[Example]) -> int:
    """The width of the batch that `counted_losses` makes of these examples."""
    return max(len(example.tokens) for example in examples) - 1


def counted_losses(base: BaseModel, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each counted token, and whether it is an exact hit: both [counted], in the
    order of the examples.

    The output head runs only on the positions whose next token counts: with a vocabulary of 150,000
    the other logits would cost more than the rest of the model.
    """
    tokens, mask, rows, columns, targets = _tensors(examples, base.device)
    with head_reads(base, rows, columns):
        output = base.model(input_ids=tokens, attention_mask=mask, use_cache=False)
    logits = picked(output.logits, rows, columns).float()
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return losses, logits.detach().argmax(-1) == targets


def _tensors(
    examples: Sequence[Example], device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Tokens [rows, longest] padded at the right, their mask (None: no padding), and for each
    counted token the row and column that predict it, and the token itself."""
    longest = positions(examples)
    padding = [longest - (len(example.tokens) - 1) for example in examples]
    tokens = [[*e.tokens[:-1], *[0] * pad] for e, pad in zip(examples, padding, strict=True)]
    places = [
        (row, column, example.tokens[column + 1])
        for row, example in enumerate(examples)
        for column in range(len(example.tokens) - 1)
        if example.counts[column + 1]
    ]
    rows, columns, targets = torch.tensor(places, device=device).unbind(1)
    mask = None
    if any(padding):
        mask = torch.tensor([[1] * (longest - pad) + [0] * pad for pad in padding], device=device)
    return torch.tensor(tokens, device=device), mask, rows, columns, targets


@contextmanager
def head_reads(base: BaseModel, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Within, the output head sees [1, counted, hidden] in place of [rows, columns, hidden]."""
    head = base.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(
        lambda _, inputs: (inputs[0][rows, columns].unsqueeze(0),)
    )
    try:
        yield
    finally:
        hook.remove()


def picked(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """What a forward pass within `head_reads` gave, as [counted, vocabulary]."""
    if logits.shape[0] != 1 or logits.shape[1] != len(rows):  # a head that takes no hook
        logits = logits[rows, columns].unsqueeze(0)
    return logits[0]
