"""Rows packed in few pieces, against the same packed vector by vector."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters_store.store import AdapterStore
from adapters_store.weights import Content
from server.adapters.loading.packing import RowPacker, RowPackers
from server.adapters.memory.layouts import Layouts
from server.adapters.methods.registry import method_named
from tests.adapters.made import Made, make_adapter, one_of_each
from tests.models import tiny_base

BASE = tiny_base("llama")
HALF = tiny_base("llama", dtype=torch.bfloat16)
MAX_RANK = 16


def content_of(made: Made, folder: Path, name: str = "pet") -> Content:
    store = AdapterStore(folder)
    return store.read(store.publish("ann", name, made.manifest, made.tensors))


def kind_of(content: Content, kinds: RowPackers) -> RowPacker:
    manifest = content.header.manifest
    return kinds.of(method_named(manifest.method, manifest.options), manifest, content.table)


def pieces(kind: RowPacker) -> int:
    """In how many a row is packed; 0: vector by vector."""
    return 0 if kind._cuts is None else len(kind._cuts.order)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rank=st.integers(1, MAX_RANK),
    method=st.sampled_from(["vera", "lora", "asymmetric-lora", "randlora"]),
    scale=st.sampled_from([1.0, -0.5]),
    targets=st.sets(st.sampled_from([*BASE.targets]), min_size=1).map(sorted),
    draw=st.integers(0, 9),
)
def test_a_row_is_what_vector_by_vector_gives(
    tmp_path: Path, rank: int, method: str, scale: float, targets: list[str], draw: int
) -> None:
    made = make_adapter(BASE, method=method, rank=rank, scale=scale, targets=targets, draw=draw)
    content = content_of(made, tmp_path)
    for base in (BASE, HALF):
        kind = kind_of(content, RowPackers(base, Layouts(base, MAX_RANK)))
        row = kind.pack(content)
        assert row.dtype == base.dtype
        assert torch.equal(row, kind.pack_plainly(content))


def test_every_variant_is_packed_right(tmp_path: Path) -> None:
    kinds = RowPackers(BASE, Layouts(BASE, MAX_RANK))
    for index, made in enumerate(one_of_each(BASE)):
        content = content_of(made, tmp_path, f"a{index}")
        kind = kind_of(content, kinds)
        assert torch.equal(kind.pack(content), kind.pack_plainly(content))


def test_of_the_largest_rank_a_row_is_one_piece_but_for_its_gaps(tmp_path: Path) -> None:
    kinds = RowPackers(BASE, Layouts(BASE, MAX_RANK))
    whole = kind_of(content_of(make_adapter(BASE, rank=MAX_RANK), tmp_path, "whole"), kinds)
    small = kind_of(content_of(make_adapter(BASE, rank=5), tmp_path, "small"), kinds)
    gaps = sum(linear.out_features % 16 > 0 for linear in BASE.targets.values())
    assert 1 <= pieces(whole) <= 1 + gaps < len(BASE.targets)
    assert len(BASE.targets) <= pieces(small) <= len(BASE.targets) + gaps


def test_what_is_folded_into_numbers_is_packed_vector_by_vector(tmp_path: Path) -> None:
    kinds = RowPackers(BASE, Layouts(BASE, MAX_RANK))
    scaled = make_adapter(BASE, scale=2.0)
    filled = make_adapter(BASE, options={"trained": "d"})
    for name, made in (("scaled", scaled), ("filled", filled)):
        assert pieces(kind_of(content_of(made, tmp_path, name), kinds)) == 0


def test_adapters_alike_are_of_one_kind_and_others_are_not(tmp_path: Path) -> None:
    kinds, q = RowPackers(BASE, Layouts(BASE, MAX_RANK)), "q_proj"
    mades = [
        make_adapter(BASE),
        make_adapter(BASE, draw=1, seed=3),
        make_adapter(BASE, rank=9),
        make_adapter(BASE, scale=2.0),
        make_adapter(BASE, targets=[q]),
        make_adapter(BASE, options={"d_initial": "0.5"}),
    ]
    found = [kind_of(content_of(made, tmp_path, f"a{at}"), kinds) for at, made in enumerate(mades)]
    assert found[0] is found[1]
    assert len({*found}) == len(mades) - 1


@pytest.mark.gpu
def test_rows_for_a_gpu_are_packed_into_pinned_memory(tmp_path: Path) -> None:
    content = content_of(make_adapter(BASE, rank=5), tmp_path)
    kind = kind_of(content, RowPackers(BASE, Layouts(BASE, MAX_RANK)))
    row = kind.pack(content, pinned=True)
    assert row.is_pinned()
    assert torch.equal(row, kind.pack_plainly(content))
