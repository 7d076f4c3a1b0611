"""Rows of a bank: packed, written, read back by layer, gathered by token."""

import pytest
import torch

from server.adapters.memory.banks import Bank, BankRows
from server.adapters.memory.layouts import PAGE, Layouts, RowLayout
from server.adapters.methods.lowrank.lowrank import LowRank
from server.adapters.methods.method import Run
from server.adapters.methods.vera.vera import Vera
from tests.models import tiny_base

BASE = tiny_base("llama")
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def new_bank(dtype: torch.dtype = torch.float32, rows: int = 3) -> tuple[RowLayout, Bank]:
    layout = RowLayout(Vera(), BASE.targets, 16, dtype)
    return layout, Bank(layout, rows * layout.pages, dtype, torch.device("cpu"))


def page_of(layout: RowLayout, row: int) -> int:
    """The page where a row begins if rows of one layout follow each other; row 0 is zeros."""
    return row * layout.pages


def test_a_row_holds_its_layers_and_zeros() -> None:
    layout, bank = new_bank()
    d, b, page = torch.arange(1.0, 6), torch.arange(48.0), page_of(layout, 2)
    bank.write(page, layout.pack({Q: {"d": d, "b": b}}))
    at_eight = bank.layer(layout, Q, 8)
    assert at_eight["d"].shape[1:] == (8,)
    assert at_eight["d"][page].tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert torch.equal(at_eight["b"][page], b)
    assert not bank.layer(layout, DOWN, 16)["b"][page].any()


def test_writing_leaves_nothing_of_the_last_row_and_touches_no_other() -> None:
    layout, bank = new_bank()
    ones = {path: {"d": torch.ones(16), "b": torch.ones(t.out_features)}
            for path, t in BASE.targets.items()}  # fmt: skip
    for row in (1, 2, 3):
        bank.write(page_of(layout, row), layout.pack(ones))
    bank.write(
        page_of(layout, 2), layout.pack({Q: {"d": torch.full((1,), 5.0), "b": torch.zeros(48)}})
    )
    for path in BASE.targets:
        for vectors in bank.layer(layout, path, 16).values():
            zeros, first, second, third = (vectors[page_of(layout, row)] for row in range(4))
            assert not zeros.any()
            assert first.eq(1).all() and third.eq(1).all()
            assert second.sum() == (5 if path == Q and vectors.shape[1] == 16 else 0)


def test_rows_of_different_layouts_lie_side_by_side() -> None:
    layout, bank = new_bank(rows=8)
    wide = Layouts(BASE, 16).of(LowRank(), 3, [Q])
    assert wide.padded_rank == 4
    a, b = torch.randn(3, 48), torch.randn(48, 3)
    first, second = page_of(layout, 1), page_of(layout, 2)
    bank.write(first, layout.pack({Q: {"d": torch.ones(16), "b": torch.ones(48)}}))
    bank.write(second, wide.pack({Q: {"A": a, "B": b}}))
    views = bank.layer(wide, Q, 4)
    assert torch.equal(views["A"][second], torch.cat([a, torch.zeros(1, 48)]))
    assert torch.equal(views["B"][second], torch.cat([b, torch.zeros(48, 1)], 1))
    assert bank.layer(layout, Q, 16)["b"][first].eq(1).all()


def test_the_zeros_are_never_written() -> None:
    layout, bank = new_bank()
    for page in range(layout.pages):
        with pytest.raises(ValueError, match="stays zero"):
            bank.write(page, layout.pack({}))


@pytest.mark.parametrize("reuse", [True, False])
def test_gathering_takes_each_tokens_row(reuse: bool) -> None:
    layout, bank = new_bank()
    for row in (1, 2):
        vectors = {"d": torch.full((4,), float(row)), "b": torch.ones(48)}
        bank.write(page_of(layout, row), layout.pack({Q: vectors}))
    pages = torch.tensor([page_of(layout, row) for row in (2, 0, 1, 2)])
    runs = [Run(int(page), at, at + 1) for at, page in enumerate(pages)]
    rows = BankRows(bank.layer(layout, Q, 4), pages, runs, reuse=reuse)
    assert rows.per_token("d")[:, 0].tolist() == [2, 0, 1, 2]
    assert (rows.per_token("d") is rows.per_token("d")) == reuse


def test_layers_begin_where_vector_loads_do() -> None:
    layout, bank = new_bank()
    assert layout.width % 16 == PAGE % 16 == 0
    for path in BASE.targets:
        for view in bank.layer(layout, path, 16).values():
            assert view.storage_offset() % 16 == 0
            assert view.stride(0) == PAGE


def test_equal_layouts_are_one_object() -> None:
    layouts = Layouts(BASE, 16)
    assert layouts.of(Vera(), 3, [Q]) is layouts.of(Vera(trained="d"), 9, [DOWN])
    wide = layouts.of(LowRank(), 3, [Q])
    assert layouts.of(LowRank(), 4, [Q]) is wide
    assert layouts.of(LowRank(), 4, [DOWN]) is not wide
    assert layouts.of(LowRank(), 5, [Q]) is not wide
