"""RandLoRA for a mixed batch: B is one product for all tokens, A is each token's own.

Knows no gradients, and no tokens of adapters that have a dense update (`dense_updates`). A token's
own part is applied in one of two ways, which differ in what they move (decision 8 has the
measurements):

- gathered: `lambda[j, k] * (a[k] . (gamma[j] * x))` with the token's own vectors. Moves n * narrow
  numbers a token, whoever it belongs to.
- whole: the scaled A [n * rank, narrow] is built once for a run of tokens of one adapter, then used
  as any matrix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from server.adapters.methods.method import Rows, Run
from server.adapters.methods.randlora.randlora_frozen import Frozen

WHOLE_TOKENS_PER_RANK: Final = {"cpu": 0.5, "cuda": 0.5}
"""A run of this many tokens for each unit of rank is worth a scaled A: decision 8.

An H200 says what a CPU says: at rank 32 the two cross between 8 and 32 tokens a run, for 8 and 64
adapters and at every shape.
"""

GATHERED_ENTRIES: Final = 1 << 22
"""How large [tokens, n, narrow] may become; more tokens are taken in turn."""


class Span(NamedTuple):
    """Neighbouring tokens applied at once; `row` is None where they are gathered."""

    row: int | None
    start: int
    stop: int


def spans_of(runs: Sequence[Run], rank: int, device: torch.device) -> tuple[Span, ...]:
    """Long runs by themselves, and the short ones between them together."""
    least = max(1.0, rank * WHOLE_TOKENS_PER_RANK[device.type])
    spans: list[Span] = []
    for run in runs:
        if run.stop - run.start > least:
            spans.append(Span(run.row, run.start, run.stop))
        elif spans and spans[-1].row is None:
            spans[-1] = Span(None, spans[-1].start, run.stop)
        else:
            spans.append(Span(None, run.start, run.stop))
    return tuple(spans)


@dataclass(slots=True, eq=False)
class ServedDelta:
    """x: [tokens, in], y: [tokens, out]; y[t] += update(lambda[row[t]], gamma[row[t]]) x[t]."""

    _frozen: Frozen
    _rows: Rows
    _spans: Sequence[Span]

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        bt = self._frozen.bt
        if self._frozen.rises:
            columns = [self._into_columns(span, rows) for span in self._spans]
            return y.addmm_(columns[0] if len(columns) == 1 else torch.cat(columns), bt)
        columns_of_all = rows @ bt.t()
        for span in self._spans:
            self._out_of_columns(span, columns_of_all, y)
        return y

    def _into_columns(self, span: Span, x: Tensor) -> Tensor:
        """What B's columns meet, of one span: [tokens, n * rank]."""
        if span.row is not None:
            return x[span.start : span.stop] @ self._scaled_a(span.row).t()
        parts = [
            self._frozen.to_columns(
                (gamma.mul_(x[tokens, None]) @ self._frozen.a.t()).mul_(lambda_)
            )
            for tokens, lambda_, gamma in self._gathered(span)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _out_of_columns(self, span: Span, columns: Tensor, y: Tensor) -> None:
        """Add to one span of `y` what came through B's columns."""
        if span.row is not None:
            tokens = slice(span.start, span.stop)
            y[tokens].addmm_(columns[tokens], self._scaled_a(span.row))
            return
        for tokens, lambda_, gamma in self._gathered(span):
            by_block = lambda_.mul_(self._frozen.to_blocks(columns[tokens], 1)) @ self._frozen.a
            y[tokens] += gamma.mul_(by_block).sum(1)

    def _scaled_a(self, row: int) -> Tensor:
        stored = self._rows.stored
        return self._frozen.scaled_a(stored("lambda")[row], stored("gamma")[row])

    def _gathered(self, span: Span) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Tokens in turn, with copies of their lambda [t, n, rank] and gamma [t, n, narrow]."""
        all_rows = self._rows.rows
        assert all_rows is not None, "in training there is nothing to gather"
        lambda_, gamma = self._rows.stored("lambda"), self._rows.stored("gamma")
        at_once = max(1, GATHERED_ENTRIES // gamma[0].numel())
        for start in range(span.start, span.stop, at_once):
            tokens = slice(start, min(span.stop, start + at_once))
            rows = all_rows[tokens]
            yield tokens, lambda_.index_select(0, rows), gamma.index_select(0, rows)
