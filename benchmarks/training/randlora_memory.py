"""What one RandLoRA layer keeps for its backward pass, ours and PEFT's: bytes a token, and always.

`python -m benchmarks.training.randlora_memory` counts the tensors that autograd saves, each storage
once, in float32 on a CPU: the bytes are the same on any device. The frozen weight, A and B count
for neither.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from peft import RandLoraConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.support.report import origin, table
from server.adapters.methods.method import BasisPair, Run
from server.adapters.methods.randlora.randlora import RandLora
from server.adapters.methods.row_shares import Shares
from server.bases.model import TargetLinear
from server.bases.seeded_matrices import Basis

SHAPES = ((384, 384), (384, 1024), (1024, 384), (2048, 2048), (2048, 8192), (8192, 2048))
FEW, MANY = 64, 192
METHOD = RandLora()


class TrainedRows:
    """`server.adapters.methods.method.Rows` in training."""

    rows = None
    runs: Sequence[Run] = ()
    shares: Shares | None = None

    def __init__(self, vectors: dict[str, Tensor]) -> None:
        self._vectors = vectors

    def stored(self, name: str) -> Tensor:
        return self._vectors[name]

    per_token = stored


def saved_bytes(
    run: Callable[[Tensor], Tensor], width: int, tokens: int, shared: Sequence[Tensor]
) -> int:
    """Bytes of what autograd saves when `run` meets an input that needs a gradient."""
    sizes: dict[int, int] = {}
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)  # so that no other storage can take its address
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(tokens, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(x)
    for tensor in shared:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


def ours(shape: tuple[int, int], rank: int, tokens: int) -> int:
    target = TargetLinear("x", nn.Identity(), *shape)
    size, basis = METHOD.basis_size(target, rank), Basis(0)
    b = basis.b(max(shape), size.b_rank, torch.float32)
    pair = BasisPair(basis.a(size.a_rank, min(shape), torch.float32), b.t().contiguous())
    vectors = METHOD.initial(target, rank, basis)
    rows = TrainedRows({name: value.requires_grad_() for name, value in vectors.items()})
    delta = METHOD.deltas({"x": (target, rows)}, rank, {"x": pair})["x"]
    y = torch.zeros(tokens, shape[1])
    return saved_bytes(lambda x: delta(x, x, y), shape[0], tokens, (pair.a, pair.bt))


def pefts(shape: tuple[int, int], rank: int, tokens: int) -> int:
    """Two layers: in PEFT a layer copies its part of B unless it is the largest."""
    model = nn.ModuleDict(
        {"x": nn.Linear(*shape), "larger": nn.Linear(shape[0] + rank, *shape[1:])}
    )
    get_peft_model(model, RandLoraConfig(r=rank, target_modules=["x", "larger"]))
    layer = model["x"]
    a, b = (getattr(layer, f"randlora_{name}")["default"] for name in ("A", "B"))
    weight = layer.get_submodule("base_layer").get_parameter("weight")
    return saved_bytes(layer, shape[0], tokens, (a, b, weight))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=32)
    rank = parser.parse_args().rank
    rows = []
    for shape in SHAPES:
        for name, count in (("Verandah", ours), ("PEFT", pefts)):
            few, many = count(shape, rank, FEW), count(shape, rank, MANY)
            per_token = (many - few) // (MANY - FEW)
            rows.append((f"{shape[0]} -> {shape[1]}", name, per_token, few - FEW * per_token))
    columns = ("linear", "kept by", "bytes a token", "bytes a layer, always")
    print(origin(), table(columns, rows), sep="\n\n")


if __name__ == "__main__":
    main()
