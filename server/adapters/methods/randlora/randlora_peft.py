"""Reads and writes PEFT's RandLoRA checkpoints. What is read keeps PEFT's pairing of columns.

PEFT flattens its scaled A [rank, n, narrow] by rank first, and B [wide, n, rank] by block first, so
column c = k * n + j of the flattened B meets lambda[k, j] A[k] gamma[j]. B is therefore kept
flattened as PEFT has it, and the pairing is an option of the method. A layer of n blocks reads the
first n * rank columns.
"""

import math

import torch
from torch import Tensor

from adapters_store.peft.folder import LAYER_PREFIX, SHARED_PREFIX
from adapters_store.peft.generator import randlora_projections, sparse_randlora_projections
from server.adapters.methods.basis_id import PEFT_PAIRING
from server.adapters.methods.checked_adapter import CheckedAdapter
from server.adapters.methods.method import Method
from server.adapters.methods.peft.incoming import Imported, IncomingCheckpoint
from server.adapters.methods.peft.outgoing import PeftCheckpoint, common_config, whole_alpha
from server.errors import InvalidRequest

_VECTORS = ("randlora_lambda", "randlora_gamma")
_MATRICES = ("randlora_A", "randlora_B")


def read_randlora(method: Method, checkpoint: IncomingCheckpoint) -> Imported:
    """Raises InvalidCheckpoint, naming the tensor or field at fault."""
    rank = checkpoint.rank(checkpoint.config.integer("r", 32))
    layers = checkpoint.layers(_VECTORS, shared=_MATRICES)
    vectors = {}
    for path, linear in layers.items():
        narrow = min(linear.in_features, linear.out_features)
        n = -(-narrow // rank)
        lambda_ = checkpoint.vector(path, "randlora_lambda", (rank, n))
        vectors[f"{path}.lambda"] = lambda_.t().contiguous()
        vectors[f"{path}.gamma"] = checkpoint.vector(path, "randlora_gamma", (n, narrow))
    max_in = max(linear.in_features for linear in layers.values())
    max_out = max(linear.out_features for linear in layers.values())
    narrow, wide = sorted((max_in, max_out))
    shapes = {"randlora_A": (rank, 1, narrow), "randlora_B": (wide, -(-narrow // rank), rank)}
    pair, source = checkpoint.shared_pair(shapes), "stored in the checkpoint"
    if pair is None:
        pair, source = _from_key(checkpoint, rank, max_in, max_out)
    return Imported(
        method=method,
        rank=rank,
        scale=checkpoint.config.number("randlora_alpha", 640) / rank,
        tensors=vectors,
        basis={"a": pair[0].flatten(0, 1), "b": pair[1].flatten(1)},
        provenance={"basis": source},
    )


def _from_key(
    checkpoint: IncomingCheckpoint, rank: int, max_in: int, max_out: int
) -> tuple[tuple[Tensor, Tensor], str]:
    """The matrices made again from their key, and a sentence that says so."""
    config, origin = checkpoint.config, checkpoint.origin
    key = config.integer("projection_prng_key", 0)
    source = f"PEFT's generator: key {key}, {origin.base_dtype}"
    if config.flag("very_sparse") or config.flag("sparse"):
        sparsity = math.sqrt(min(max_in, max_out)) if config.flag("very_sparse") else 3.0
        sparse = sparse_randlora_projections(key, rank, max_in, max_out, sparsity)
        return origin.as_trained(sparse), f"{source}, sparsity {sparsity:g}"
    era, half = origin.drawn()
    dense = randlora_projections(key, rank, max_in, max_out, era=era, half=half)
    return origin.as_trained(dense), f"{source}, torch {era}, {half}"


def write_randlora(adapter: CheckedAdapter) -> PeftCheckpoint:
    """Raises InvalidRequest where one B of PEFT's cannot serve all layers."""
    rank, linears = adapter.manifest.rank, adapter.linears
    narrow, wide = sorted(adapter.widest)
    blocks = -(-narrow // rank)
    matrices = adapter.matrices(linears[0].path)
    if adapter.basis.pairing == PEFT_PAIRING:
        b = matrices.b(wide, blocks * rank, torch.float32)
    else:
        n = _common_blocks(adapter)
        b = torch.zeros(wide, blocks * rank)
        ours = matrices.b(wide, n * rank, torch.float32).view(wide, n, rank)
        # PEFT's column k * n + j meets what our column j * rank + k does.
        b[:, : n * rank] = ours.transpose(1, 2).flatten(1)
    tensors = {
        f"{SHARED_PREFIX}randlora_A": matrices.a(rank, narrow, torch.float32)[:, None],
        f"{SHARED_PREFIX}randlora_B": b.view(wide, blocks, rank),
    }
    alpha = whole_alpha(adapter.manifest)
    factor = adapter.manifest.scale if alpha is None else 1.0
    for linear in linears:
        vectors = adapter.vectors(linear)
        name = f"{LAYER_PREFIX}{linear.path}.randlora"
        tensors[f"{name}_lambda"] = (vectors["lambda"].double() * factor).t().float()
        tensors[f"{name}_gamma"] = vectors["gamma"]
    config = {
        "randlora_alpha": rank if alpha is None else alpha,
        "projection_prng_key": 0,
        "save_projection": True,
        "randlora_dropout": 0.0,
    }
    return PeftCheckpoint(common_config(adapter, "RANDLORA") | config, tensors)


def _common_blocks(adapter: CheckedAdapter) -> int:
    """n, if all layers have the same.

    PEFT's pairing of columns depends on n, and one B serves all its layers, so that one B can stand
    for our pairing at one n only.
    """
    rank = adapter.manifest.rank
    counts = {
        -(-min(linear.in_features, linear.out_features) // rank): linear.path
        for linear in adapter.linears
    }
    if len(counts) > 1:
        examples = ", ".join(f"{n} in {path}" for n, path in sorted(counts.items()))
        raise InvalidRequest(
            f"PEFT's RandLoRA cannot express this adapter, whose layers have different numbers of "
            f"blocks ({examples}): export it as merged, or train one with targets of one min(in, "
            "out)",
            param="format",
        )
    return next(iter(counts))
