"""A model that the engine would run wrongly does not start."""

from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.plain import attention, token_layout
from server.errors import UnsupportedModel
from tests.engine.driving import make_engine, make_sequence
from tests.models import KINDS, Kind, tiny_model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lost_mask_is_noticed(
    kind: Kind, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine(tiny_model(kind, dtype=dtype))  # it starts as it is

    def no_mask(
        self: token_layout.Layout, queries: Tensor, keys: Tensor, window: int | None
    ) -> Tensor:
        return torch.zeros(torch.broadcast_shapes(queries.shape, keys.shape), dtype=dtype)

    monkeypatch.setattr(token_layout.Layout, "_mask", no_mask)
    with pytest.raises(UnsupportedModel, match="other logits"):
        make_engine(tiny_model(kind, dtype=dtype))


def test_a_window_that_the_model_keeps_to_itself_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such a window is longer than the trial, so that no logit would show it."""
    model = tiny_model("mistral", sliding_window=200)
    make_engine(model)
    aware = attention.paged_attention

    def unaware(*args: Any, sliding_window: int | None = None, **others: Any) -> object:
        return aware(*args, **others)

    monkeypatch.setattr(attention, "paged_attention", unaware)
    with pytest.raises(UnsupportedModel, match="does not pass it to the engine's attention"):
        make_engine(model)


def test_a_model_that_gives_other_rows_than_asked_is_noticed() -> None:
    model = tiny_model("llama")
    plain = model.forward

    def all_rows(*args: Any, logits_to_keep: object = None, **others: Any) -> object:
        return plain(*args, **others)

    model.forward = all_rows
    with pytest.raises(UnsupportedModel, match="other logits"):
        make_engine(model)


def test_a_model_that_breaks_inside_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise TypeError("unexpected keyword 'paged'")

    monkeypatch.setattr(attention, "paged_attention", broken)
    with pytest.raises(UnsupportedModel, match=r"'tiny' \(phi\) does not run in this engine: unex"):
        make_engine(tiny_model("phi"))


@pytest.mark.parametrize("block_tokens", [1, 1000, 1300])
def test_the_trial_fits_the_smallest_memory(block_tokens: int) -> None:
    """1 MiB holds two blocks of 1,300 tokens of this model."""
    engine = make_engine(tiny_model("llama"), memory_mb=1, block_tokens=block_tokens)
    assert len(engine.finish(make_sequence(0, [1, 2, 3]))) == 12


def test_a_second_runner_takes_over() -> None:
    model = tiny_model("llama")
    first = make_engine(model).finish(make_sequence(0, [9, 8, 7]))
    assert make_engine(model).finish(make_sequence(0, [9, 8, 7])) == first
