"""The seam that methods fit into, tried with one unlike VeRA: it trains a matrix."""

from collections.abc import Hashable, Mapping
from typing import Final

import pytest
import torch
from torch import Tensor

from adapters_store.manifest import Manifest
from server.adapters import methods
from server.adapters.method import BasisPair, BasisSize, Delta, Rows, Vectors
from server.adapters.trainable import TrainableAdapter
from server.bases.model import TargetLinear
from server.bases.seeded import SPEC, Basis
from tests.adapters.conftest import Serve
from tests.adapters.made import Made, make_adapter, merged_logits
from tests.models import tiny_base

TOKENS = torch.arange(3, 15)


class TrainedUp:
    """y += scale * U (A x), U [out, rank] trained: asymmetric LoRA, the plainest way."""

    name: Final = "trained-up"

    def shapes(self, linear: TargetLinear, rank: int) -> dict[str, tuple[int, ...]]:
        return {"up": (linear.out_features, rank)}

    def room(self, linear: TargetLinear, max_rank: int) -> dict[str, tuple[int, ...]]:
        return self.shapes(linear, max_rank)

    def basis_size(self, rank: int) -> BasisSize:
        return BasisSize(rank, 1)

    def group(self, seed: int, rank: int) -> Hashable:
        return seed

    def initial(
        self, linear: TargetLinear, rank: int, options: Mapping[str, float]
    ) -> dict[str, Tensor]:
        return {"up": torch.zeros(linear.out_features, rank)}

    def unit(self, linear: TargetLinear, rank: int) -> dict[str, float]:
        return {"up": 0.125}

    def fold(self, vectors: Vectors, scale: float) -> dict[str, Tensor]:
        return {"up": vectors["up"] * scale}

    def deltas(
        self,
        layers: Mapping[str, tuple[TargetLinear, Rows]],
        rank: int,
        basis: BasisPair,
        dropout: float = 0.0,
    ) -> dict[str, Delta]:
        def delta_of(linear: TargetLinear, source: Rows) -> Delta:
            a = basis.a[:rank, : linear.in_features]

            def delta(x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
                if source.slots is None:
                    return y + rows @ a.t() @ source.stored("up").t()
                up = source.stored("up")[source.slots]
                return y + torch.einsum("tr,tor->to", rows @ a.t(), up)

            return delta

        return {path: delta_of(*layer) for path, layer in layers.items()}

    def dense(
        self, linear: TargetLinear, rank: int, basis: Basis, vectors: Vectors, scale: float
    ) -> Tensor:
        a = basis.a(rank, linear.in_features, torch.float64)
        return scale * vectors["up"].double() @ a


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "trained-up", TrainedUp())


def make_up(like: Made, *, rank: int, scale: float) -> Made:
    """An adapter of `TrainedUp` with the targets and base of another."""
    random = torch.Generator().manual_seed(rank)
    tensors = {
        name.replace(".b", ".up"): torch.randn(len(b), rank, generator=random) * 0.02
        for name, b in like.tensors.items()
        if name.endswith(".b")
    }
    fields = like.manifest.__dict__ | {"method": "trained-up", "rank": rank, "scale": scale}
    return Made(Manifest(**fields), tensors)


def test_methods_mix_in_one_batch(serve: Serve) -> None:
    served = serve()
    vera = make_adapter(served.base, rank=6, draw=1)
    mades = [
        vera,
        make_up(vera, rank=4, scale=2.0),
        make_up(make_adapter(served.base, targets="attention", seed=11), rank=9, scale=-1.0),
    ]
    slots = [served.acquire(served.publish(made, f"a{i}")) for i, made in enumerate(mades)]
    logits = served.logits(TOKENS.expand(4, -1), [*slots, 0])
    for made, row in zip([*mades, None], logits, strict=True):
        expected = merged_logits(served.base, made, TOKENS)
        torch.testing.assert_close(row, expected, rtol=2e-4, atol=2e-4)


def test_slots_pass_from_one_method_to_another(serve: Serve) -> None:
    served = serve(slots=1)
    vera = make_adapter(served.base, rank=6, draw=1)
    mades = [vera, make_up(vera, rank=4, scale=1.0)]
    refs = [served.publish(made, f"a{i}") for i, made in enumerate(mades)]
    for ref, made in zip(refs * 2, mades * 2, strict=True):
        logits = served.logits(TOKENS[None], [served.acquire(ref)])[0]
        served.adapters.release(ref)
        expected = merged_logits(served.base, made, TOKENS)
        torch.testing.assert_close(logits, expected, rtol=2e-4, atol=2e-4)


def test_it_trains_through_the_same_layers() -> None:
    base = tiny_base("gpt2")
    adapter = TrainableAdapter(base, "trained-up", 4, 7, "all-linear", {})
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for _ in range(2):
        with adapter.active():
            loss = base.model(TOKENS[None], labels=TOKENS[None]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made = Made(adapter.manifest(created_at=0, provenance={}), adapter.tensors())
    assert made.manifest.basis_spec == SPEC
    with torch.no_grad(), adapter.active():
        logits = base.model(TOKENS[None]).logits[0]
    expected = merged_logits(base, made, TOKENS)
    torch.testing.assert_close(logits, expected, rtol=2e-4, atol=2e-4)
    assert not torch.allclose(expected, merged_logits(base, None, TOKENS), atol=1e-2)
