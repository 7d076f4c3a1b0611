"""A PEFT VeRA checkpoint as an adapter of the method `vera`.

    y = W x + lambda_b * (B (lambda_d * (A x)))

PEFT's A [rank, max_in] and B [max_out, rank] are read, or made again from their key; max_in and
max_out are the largest among the targeted linears, and each layer reads a corner.
"""

from adapters_store.peft.adapter_config import PeftConfig
from adapters_store.peft.folder import SHARED_PREFIX, PeftTensors
from adapters_store.peft.generator import vera_projections
from server.adapters.methods.vera import Vera
from server.adapters.porting.incoming import (
    Imported,
    Origin,
    checked_rank,
    layers_of,
    read_vector,
    shared_pair,
)
from server.bases.model import BaseModel

_OURS = {"vera_lambda_d": "d", "vera_lambda_b": "b"}
_MATRICES = ("vera_A", "vera_B")


def read_vera(
    base: BaseModel, config: PeftConfig, tensors: PeftTensors, origin: Origin, max_rank: int
) -> Imported:
    """Raises InvalidCheckpoint, naming the tensor or field at fault."""
    rank = checked_rank(config.integer("r", 256), max_rank)
    shared = {f"{SHARED_PREFIX}{name}" for name in _MATRICES}
    layers = layers_of(base, tensors.names - shared, (*_OURS, *_MATRICES))
    vectors = {}
    for path, linear in layers.items():
        shapes = {"vera_lambda_d": (rank,), "vera_lambda_b": (linear.out_features,)}
        for theirs, shape in shapes.items():
            vectors[f"{path}.{_OURS[theirs]}"] = read_vector(base, tensors, path, theirs, shape)
    max_in = max(linear.in_features for linear in layers.values())
    max_out = max(linear.out_features for linear in layers.values())
    pair = shared_pair(base, tensors, {"vera_A": (rank, max_in), "vera_B": (max_out, rank)})
    told = "stored in the checkpoint"
    if pair is None:
        key = config.integer("projection_prng_key", 0)
        made = vera_projections(key, rank, max_in, max_out)
        pair = origin.as_trained(made)
        told = f"PEFT's generator: key {key}, {origin.base_dtype}"
    return Imported(
        method=Vera(),
        rank=rank,
        scale=1.0,
        tensors=vectors,
        basis={"a": pair[0], "b": pair[1]},
        provenance={"basis": told},
    )
