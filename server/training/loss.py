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

    def add(self, loss: Tensor, hits: Tensor, count: int) -> None:
        """Add one part: what `counted_loss` gave."""
        self._loss.append(loss.detach())
        self._hits.append(hits)
        self._count += count

    def score(self) -> Score:
        """The mean over all counted tokens."""
        loss = torch.stack(self._loss).double().sum().item()
        hits = torch.stack(self._hits).sum().item()
        return Score(loss / self._count, hits / self._count)


def counted_loss(base: BaseModel, examples: Sequence[Example]) -> tuple[Tensor, Tensor, int]:
    """Cross-entropy summed over the counted tokens; exact hits; how many counted tokens.

    The output head runs only on the positions whose next token counts: with a vocabulary of 150,000
    the other logits would cost more than the rest of the model.
    """
    tokens, mask, rows, columns, targets = _tensors(examples, base.device)
    with _head_reads(base, rows, columns):
        output = base.model(input_ids=tokens, attention_mask=mask, use_cache=False)
    logits = output.logits
    if logits.shape[0] != 1 or logits.shape[1] != len(targets):  # a head that takes no hook
        logits = logits[rows, columns].unsqueeze(0)
    logits = logits[0].float()
    loss = functional.cross_entropy(logits, targets, reduction="sum")
    hits = (logits.detach().argmax(-1) == targets).sum()
    return loss, hits, len(targets)


def _tensors(
    examples: Sequence[Example], device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Tokens [rows, longest] padded at the right, their mask (None: no padding), and for each
    counted token the row and column that predict it, and the token itself."""
    longest = max(len(example.tokens) for example in examples) - 1
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
def _head_reads(base: BaseModel, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Within, the output head sees [1, counted, hidden] in place of [rows, columns, hidden]."""
    head = base.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(
        lambda _, inputs: (inputs[0][rows, columns].unsqueeze(0),)
    )
    try:
        yield
    finally:
        hook.remove()
