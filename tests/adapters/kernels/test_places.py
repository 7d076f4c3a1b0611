"""Where kernels are told that a linear's vectors lie, against what was packed there."""

import math

import pytest
import torch

from server.adapters.memory.layouts import RowLayout
from server.adapters.methods.lowrank.lowrank import LowRank
from server.adapters.methods.method import Method
from server.adapters.methods.vera.vera import Vera
from tests.models import tiny_base


@pytest.mark.parametrize("method", [Vera(), LowRank(), LowRank("B")], ids=["vera", "lora", "half"])
def test_a_vector_begins_where_the_layout_says(method: Method) -> None:
    targets = tiny_base("llama").targets
    layout = RowLayout(method, targets, 8, torch.float32)
    layers = {
        path: {name: torch.rand(shape) for name, shape in method.padded_shapes(linear, 8).items()}
        for path, linear in targets.items()
    }
    row = layout.pack(layers)
    for path, vectors in layers.items():
        starts = layout.starts(path)
        assert starts.keys() == vectors.keys()
        for name, start in starts.items():
            shape = vectors[name].shape
            found = row[start : start + math.prod(shape)].view(shape)
            assert torch.equal(found, vectors[name])
