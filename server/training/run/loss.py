"""Cross-entropy of the tokens that count, with no work on the others. Knows no adapter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from server.adapters.methods.row_shares import sent
from server.bases.model import BaseModel
from server.training.run.examples import Example
from server.training.run.fused_layers import fused_layers
from server.training.run.wide_attention import wide_attention


@dataclass(frozen=True)
class Score:
    """How well the counted tokens are predicted: mean loss in nats, share of exact hits."""

    loss: float
    accuracy: float


class ScoreSums:
    """The sums of loss and hits over several forward passes. `score` waits for the accelerator, so
    it is called once, at the end."""

    def __init__(self) -> None:
        self._loss: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._count = 0

    def add(self, losses: Tensor, hits: Tensor) -> None:
        """Add what `counted_losses` gave."""
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
    tokens, rows, columns, targets = _tensors(examples, base.device)
    # No mask: padding is at the right, which causal attention does not see. With a mask, torch
    # would not use its fastest attention.
    with (
        fused_layers(base, tokens.numel()),
        wide_attention(base),
        head_reads(base, rows, columns),
    ):
        output = base.model(input_ids=tokens, use_cache=False)
    return cross_entropy(picked(output.logits, rows, columns), targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each row of logits, float32, and whether its largest is the target: [rows]."""
    if not logits.is_cuda:
        return reference_cross_entropy(logits, targets)
    from server.training.kernels import cross_entropy as kernel  # a CPU has no triton

    return kernel.cross_entropy(logits, targets)


def reference_cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`cross_entropy` in torch's own operations."""
    losses = functional.cross_entropy(logits.float(), targets, reduction="none")
    return losses, logits.detach().argmax(-1) == targets


def _tensors(
    examples: Sequence[Example], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens [rows, longest] padded at the right, and for each counted token the row and column
    that predict it, and the token itself."""
    tokens = np.zeros((len(examples), positions(examples) + 1), np.int64)
    counts = np.zeros(tokens.shape, np.bool_)
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)] = example.tokens
        counts[row, : len(example.counts)] = example.counts
    rows, columns = np.nonzero(counts[:, 1:])
    places = sent(torch.from_numpy(np.stack([rows, columns, tokens[rows, columns + 1]])), device)
    inputs = sent(torch.from_numpy(tokens[:, :-1].copy()), device)
    return inputs, places[0], places[1], places[2]


@contextmanager
def head_reads(base: BaseModel, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Within, the output head sees [1, counted, hidden] in place of [rows, columns, hidden]."""
    head = base.model.get_output_embeddings()

    def chosen(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (hidden,) = inputs
        # One index, for the backward pass of indexing with two sorts them.
        return (hidden.flatten(0, 1).index_select(0, rows * hidden.shape[1] + columns)[None],)

    hook = head.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        hook.remove()


def picked(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The logits of a forward pass within `head_reads`, as [counted, vocabulary]."""
    if logits.shape[0] != 1 or logits.shape[1] != len(rows):  # the head did not run the hook
        logits = logits[rows, columns].unsqueeze(0)
    return logits[0]
