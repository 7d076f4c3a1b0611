"""RandLoRA with PEFT's pairing against PEFT's own layers, and what each keeps to learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import RandLoraConfig, get_peft_model
from torch import Tensor, nn

from server.adapters.methods.method import BasisPair, Rows
from server.adapters.methods.randlora.randlora import RandLora
from server.bases.model import TargetLinear
from tests.adapters.methods.test_randlora import Served, Trained, linear, saved_bytes

# [in, out]; ranks 8 and 7 divide the narrow sides and do not.
SHAPES = {"square": (48, 48), "tall": (48, 80), "wide": (80, 48), "small": (33, 21)}
METHOD = RandLora(pairing="peft")
ALPHA = 6


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, (in_features, out_features) in SHAPES.items():
            self.add_module(name, nn.Linear(in_features, out_features))


@dataclass
class Peft:
    """PEFT's adapted layers, and its numbers as an importer hands them to the method."""

    layers: Mapping[str, Any]
    a: Tensor
    b: Tensor
    vectors: Mapping[str, dict[str, Tensor]]

    def matrices(self) -> "Stored":
        return Stored(self.a, self.b)


@dataclass
class Stored:
    whole_a: Tensor
    whole_b: Tensor

    def a(self, rank: int, in_features: int, dtype: torch.dtype) -> Tensor:
        return self.whole_a[:rank, :in_features].to(dtype)

    def b(self, out_features: int, rank: int, dtype: torch.dtype) -> Tensor:
        return self.whole_b[:out_features, :rank].to(dtype)


def in_peft(rank: int, **options: Any) -> Peft:
    """Random lambda and gamma: PEFT's own start would hide which column meets which row."""
    torch.manual_seed(rank)
    config = RandLoraConfig(
        r=rank, randlora_alpha=ALPHA * rank, target_modules=list(SHAPES), **options
    )
    model = Layers()
    get_peft_model(model, config)
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in SHAPES}
    vectors = {}
    with torch.no_grad():
        for name, layer in layers.items():
            lambda_, gamma = layer.randlora_lambda["default"], layer.randlora_gamma["default"]
            vectors[name] = {
                "lambda": lambda_.normal_().t().clone(),
                "gamma": gamma.normal_(std=0.05).clone(),
            }
    any_layer = layers["square"]
    a, b = any_layer.randlora_A["default"], any_layer.randlora_B["default"]
    return Peft(layers, a[:, 0].float(), b.flatten(1).float(), vectors)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rank", [8, 7])
@pytest.mark.parametrize("options", [{}, {"sparse": True}, {"very_sparse": True}], ids=str)
def test_every_path_is_what_pefts_own_layer_answers(
    name: str, rank: int, options: dict[str, bool]
) -> None:
    peft = in_peft(rank, **options)
    target, layer, vectors = linear(*SHAPES[name]), peft.layers[name], peft.vectors[name]
    x = torch.randn(40, target.in_features)
    with torch.no_grad():
        expected, plain = layer(x), layer.base_layer(x)
    change = METHOD.dense(target, rank, peft.matrices(), vectors, ALPHA)
    torch.testing.assert_close(plain + x @ change.float().t(), expected, rtol=1e-4, atol=1e-4)
    for rows in (_served(target, rank, vectors, [0] * 40), _trained(target, rank, vectors)):
        with torch.no_grad():
            ours = _delta(target, rank, rows, peft)(x, x, plain.clone())
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_the_papers_pairing_is_another_update(name: str) -> None:
    peft, target = in_peft(8), linear(*SHAPES[name])
    theirs, papers = (
        method.dense(target, 8, peft.matrices(), peft.vectors[name], ALPHA)
        for method in (METHOD, RandLora())
    )
    assert (theirs - papers).norm() > theirs.norm()


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_of_pefts_own_layer(name: str) -> None:
    peft, target = in_peft(7), linear(*SHAPES[name])
    layer, x = peft.layers[name], torch.randn(9, target.in_features)
    layer(x).square().sum().backward()
    vectors = {key: value.requires_grad_() for key, value in peft.vectors[name].items()}
    delta = _delta(target, 7, _trained(target, 7, vectors), peft)
    delta(x, x, layer.base_layer(x).detach()).square().sum().backward()
    for key, theirs in (
        ("lambda", layer.randlora_lambda["default"].grad.t()),
        ("gamma", layer.randlora_gamma["default"].grad),
    ):
        torch.testing.assert_close(vectors[key].grad, theirs, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["square", "tall", "wide"])
def test_it_keeps_far_less_to_learn_than_peft(name: str) -> None:
    """A layer in PEFT keeps its scaled A, as large as its weight, and often a copy of its B."""
    peft, target = in_peft(8), linear(*SHAPES[name])
    layer, x = peft.layers[name], torch.randn(16, target.in_features, requires_grad=True)
    vectors = {key: value.requires_grad_() for key, value in peft.vectors[name].items()}
    pair = _pair(peft)
    ours = saved_bytes(
        METHOD.deltas({"x": (target, _trained(target, 8, vectors))}, 8, {"x": pair})["x"],
        x,
        torch.zeros(16, target.out_features),
        (pair.a, pair.bt),
    )
    shared = (layer.randlora_A["default"], layer.randlora_B["default"], layer.base_layer.weight)
    theirs = saved_bytes(lambda x, rows, y: y + layer(x), x, torch.zeros(1), shared)
    narrow = min(SHAPES[name])
    assert theirs - ours >= 4 * narrow * narrow


def _pair(peft: Peft) -> BasisPair:
    return BasisPair(peft.a, peft.b.t().contiguous())


def _delta(target: TargetLinear, rank: int, rows: Rows, peft: Peft) -> Any:
    return METHOD.deltas({"x": (target, rows)}, rank, {"x": _pair(peft)})["x"]


def _folded(target: TargetLinear, rank: int, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return METHOD.fold(target, rank, vectors, ALPHA)


def _trained(target: TargetLinear, rank: int, vectors: Mapping[str, Tensor]) -> Rows:
    return Trained(**_folded(target, rank, vectors))


def _served(
    target: TargetLinear, rank: int, vectors: Mapping[str, Tensor], rows: Sequence[int]
) -> Rows:
    folded = _folded(target, rank, vectors)
    return Served({name: value[None] for name, value in folded.items()}, rows)
