"""Reads and writes PEFT's VeRA checkpoints.

    y = W x + lambda_b * (B (lambda_d * (A x)))

PEFT's A [rank, max_in] and B [max_out, rank] are read, or made again from their key. max_in and
max_out are the largest among the targeted linears; each layer reads the corner that fits it.
"""

import torch

from adapters_store.peft.folder import LAYER_PREFIX, SHARED_PREFIX
from adapters_store.peft.generator import vera_projections
from server.adapters.methods.checked_adapter import CheckedAdapter
from server.adapters.methods.method import Method
from server.adapters.methods.peft.incoming import Imported, IncomingCheckpoint
from server.adapters.methods.peft.outgoing import PeftCheckpoint, common_config
from server.errors import InvalidRequest

_OURS = {"vera_lambda_d": "d", "vera_lambda_b": "b"}
_MATRICES = ("vera_A", "vera_B")


def read_vera(method: Method, checkpoint: IncomingCheckpoint) -> Imported:
    """Raises InvalidCheckpoint, naming the tensor or field at fault."""
    config, origin = checkpoint.config, checkpoint.origin
    rank = checkpoint.rank(config.integer("r", 256))
    layers = checkpoint.layers((*_OURS,), shared=_MATRICES)
    vectors = {}
    for path, linear in layers.items():
        shapes = {"vera_lambda_d": (rank,), "vera_lambda_b": (linear.out_features,)}
        for name, shape in shapes.items():
            vectors[f"{path}.{_OURS[name]}"] = checkpoint.vector(path, name, shape)
    max_in = max(linear.in_features for linear in layers.values())
    max_out = max(linear.out_features for linear in layers.values())
    pair = checkpoint.shared_pair({"vera_A": (rank, max_in), "vera_B": (max_out, rank)})
    source = "stored in the checkpoint"
    if pair is None:
        key = config.integer("projection_prng_key", 0)
        pair = origin.as_trained(vera_projections(key, rank, max_in, max_out))
        source = f"PEFT's generator: key {key}, {origin.base_dtype}"
    return Imported(
        method=method,
        rank=rank,
        scale=1.0,
        tensors=vectors,
        basis={"a": pair[0], "b": pair[1]},
        provenance={"basis": source},
    )


def write_vera(adapter: CheckedAdapter) -> PeftCheckpoint:
    """Raises InvalidRequest where every layer reads a basis of its own."""
    if adapter.basis.per_layer:
        raise InvalidRequest(
            "PEFT's VeRA shares its matrices among all layers, and this adapter has some of its "
            "own for each: export it as peft-lora or merged",
            param="format",
        )
    rank, linears = adapter.manifest.rank, adapter.linears
    matrices = adapter.matrices(linears[0].path)
    max_in, max_out = adapter.widest
    tensors = {
        f"{SHARED_PREFIX}vera_A": matrices.a(rank, max_in, torch.float32),
        f"{SHARED_PREFIX}vera_B": matrices.b(max_out, rank, torch.float32),
    }
    for linear in linears:
        folded = adapter.folded(linear)
        tensors[f"{LAYER_PREFIX}{linear.path}.vera_lambda_d"] = folded["d"].float()
        tensors[f"{LAYER_PREFIX}{linear.path}.vera_lambda_b"] = folded["b"].float()
    config = {"projection_prng_key": 0, "save_projection": True, "vera_dropout": 0.0}
    return PeftCheckpoint(common_config(adapter, "VERA") | config, tensors)
