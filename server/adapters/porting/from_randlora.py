"""A PEFT RandLoRA checkpoint as an adapter of the method `randlora` with PEFT's pairing.

PEFT flattens its scaled A [rank, n, narrow] by rank first, and B [wide, n, rank] by block first, so
column c = k * n + j of the flattened B meets lambda[k, j] A[k] gamma[j]. B is therefore kept
flattened as PEFT has it, and the pairing is an option of the method. A layer of n blocks reads the
first n * rank columns.
"""

import math

from torch import Tensor

from adapters_store.peft.adapter_config import PeftConfig
from adapters_store.peft.folder import SHARED_PREFIX, PeftTensors
from adapters_store.peft.generator import (
    randlora_projections,
    sparse_randlora_projections,
)
from server.adapters.methods.basis_id import PEFT_PAIRING
from server.adapters.methods.randlora import RandLora
from server.adapters.porting.incoming import (
    Imported,
    Origin,
    checked_rank,
    layers_of,
    read_vector,
    shared_pair,
)
from server.bases.model import BaseModel

_VECTORS = ("randlora_lambda", "randlora_gamma")
_MATRICES = ("randlora_A", "randlora_B")


def read_randlora(
    base: BaseModel, config: PeftConfig, tensors: PeftTensors, origin: Origin, max_rank: int
) -> Imported:
    """Raises InvalidCheckpoint, naming the tensor or field at fault."""
    rank = checked_rank(config.integer("r", 32), max_rank)
    shared = {f"{SHARED_PREFIX}{name}" for name in _MATRICES}
    layers = layers_of(base, tensors.names - shared, (*_VECTORS, *_MATRICES))
    vectors = {}
    for path, linear in layers.items():
        narrow = min(linear.in_features, linear.out_features)
        n = -(-narrow // rank)
        lambda_ = read_vector(base, tensors, path, "randlora_lambda", (rank, n))
        vectors[f"{path}.lambda"] = lambda_.t().contiguous()
        vectors[f"{path}.gamma"] = read_vector(base, tensors, path, "randlora_gamma", (n, narrow))
    max_in = max(linear.in_features for linear in layers.values())
    max_out = max(linear.out_features for linear in layers.values())
    narrow, wide = sorted((max_in, max_out))
    shapes = {"randlora_A": (rank, 1, narrow), "randlora_B": (wide, -(-narrow // rank), rank)}
    pair, told = shared_pair(base, tensors, shapes), "stored in the checkpoint"
    if pair is None:
        pair, told = _made(config, origin, rank, max_in, max_out)
    return Imported(
        method=RandLora(pairing=PEFT_PAIRING),
        rank=rank,
        scale=config.number("randlora_alpha", 640) / rank,
        tensors=vectors,
        basis={"a": pair[0].flatten(0, 1), "b": pair[1].flatten(1)},
        provenance={"basis": told},
    )


def _made(
    config: PeftConfig, origin: Origin, rank: int, max_in: int, max_out: int
) -> tuple[tuple[Tensor, Tensor], str]:
    """The matrices from their key, and how they came about."""
    key = config.integer("projection_prng_key", 0)
    told = f"PEFT's generator: key {key}, {origin.base_dtype}"
    if config.flag("very_sparse") or config.flag("sparse"):
        sparsity = math.sqrt(min(max_in, max_out)) if config.flag("very_sparse") else 3.0
        sparse = sparse_randlora_projections(key, rank, max_in, max_out, sparsity)
        return origin.as_trained(sparse), f"{told}, sparsity {sparsity:g}"
    era, half = origin.drawn()
    dense = randlora_projections(key, rank, max_in, max_out, era=era, half=half)
    return origin.as_trained(dense), f"{told}, torch {era}, {half}"
