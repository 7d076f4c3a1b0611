"""Rows of a bank: packed, written, read back by layer, gathered by token."""

import pytest
import torch

from server.adapters.banks import Bank, BankRows, RowLayout
from server.adapters.vera import Vera
from tests.models import tiny_base

BASE = tiny_base("llama")
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def new_bank(dtype: torch.dtype = torch.float32, slots: int = 3) -> tuple[RowLayout, Bank]:
    layout = RowLayout(Vera(), BASE.targets, 16, dtype)
    return layout, Bank({"vera": layout}, slots, dtype, torch.device("cpu"))


def test_a_row_holds_its_layers_and_zeros() -> None:
    layout, bank = new_bank()
    d, b = torch.arange(1.0, 6), torch.arange(48.0)
    bank.write(2, layout.pack({Q: {"d": d, "b": b}}))
    at_eight = bank.layer("vera", Q, 8)
    assert at_eight["d"].shape == (4, 8)
    assert at_eight["d"][2].tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert torch.equal(at_eight["b"][2], b)
    assert not bank.layer("vera", DOWN, 16)["b"][2].any()


def test_writing_leaves_nothing_of_the_last_row_and_touches_no_other() -> None:
    layout, bank = new_bank()
    ones = {path: {"d": torch.ones(16), "b": torch.ones(t.out_features)}
            for path, t in BASE.targets.items()}  # fmt: skip
    for slot in (1, 2, 3):
        bank.write(slot, layout.pack(ones))
    bank.write(2, layout.pack({Q: {"d": torch.full((1,), 5.0), "b": torch.zeros(48)}}))
    for path in BASE.targets:
        for vectors in bank.layer("vera", path, 16).values():
            assert not vectors[0].any()
            assert vectors[[1, 3]].eq(1).all()
            assert vectors[2].sum() == (5 if path == Q and vectors.shape[1] == 16 else 0)


def test_the_bases_slot_is_never_written() -> None:
    layout, bank = new_bank()
    with pytest.raises(ValueError, match="slot 0"):
        bank.write(0, layout.pack({}))


@pytest.mark.parametrize("keep", [True, False])
def test_gathering_takes_each_tokens_slot(keep: bool) -> None:
    layout, bank = new_bank()
    for slot in (1, 2):
        bank.write(
            slot, layout.pack({Q: {"d": torch.full((4,), float(slot)), "b": torch.ones(48)}})
        )
    rows = BankRows(bank.layer("vera", Q, 4), torch.tensor([2, 0, 1, 2]), keep=keep)
    assert rows.per_token("d")[:, 0].tolist() == [2, 0, 1, 2]
    assert (rows.per_token("d") is rows.per_token("d")) == keep


def test_layers_begin_where_vector_loads_do() -> None:
    layout, bank = new_bank()
    assert layout.width % 16 == 0
    for path in BASE.targets:
        for view in bank.layer("vera", path, 16).values():
            assert view.storage_offset() % 16 == 0
    assert layout.row_bytes == bank.row_bytes == 4 * layout.width
