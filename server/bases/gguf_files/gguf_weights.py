"""The weights of a GGUF file, dequantised into one safetensors file, a few rows at a time."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite, prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gguf import get_tensor_name_map
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from server.bases.gguf_files.gguf_config import Family, family_of
from server.bases.gguf_files.gguf_header import GgufHeader, GgufTensor
from server.bases.model import BUILDING
from server.errors import UnsupportedModel

FACTORS: Final = "rope_freqs.weight"

_READ: Final = frozenset(
    GGMLQuantizationType[name]
    for name in (
        *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        "IQ4_NL",  # stands in where a row is no whole number of blocks of Q2_K or Q3_K
    )
)
_PLAIN: Final = frozenset(GGMLQuantizationType[name] for name in ("F32", "F16", "BF16"))
_PASS_BY: Final = ("rope_freqs.weight", "rope_factors_long.weight", ".attn_rot_embd")
_CHUNK: Final = 4 * 2**20  # numbers that are dequantised at once
_NAMES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

Moved = Callable[[int], None]
"""Told of the bytes that were written since it was last told."""


class WeightPlan:
    """Which tensor of the file becomes which parameter of the model.

    Raises:
        UnsupportedModel: the file lacks a tensor, has one too many, or one of another shape or of a
            quantisation that is not read.
    """

    def __init__(self, header: GgufHeader, config: Mapping[str, Any]) -> None:
        self._header = header
        self._config = config
        self._family = family_of(header)
        self._dtype: torch.dtype = getattr(torch, config["dtype"])
        self.pairs = dict(_pairs(header, self._family, _outline(header, config)))

    @property
    def size(self) -> int:
        """Bytes of the safetensors file, but for its header."""
        numbers = sum(prod(tensor.shape) for tensor in self.pairs.values())
        return numbers * self._dtype.itemsize

    def write(self, path: Path, moved: Moved) -> None:
        """Write the safetensors file."""
        entries, at = dict[str, object](), 0
        for name, tensor in self.pairs.items():
            end = at + prod(tensor.shape) * self._dtype.itemsize
            entries[name] = {
                "dtype": _NAMES[str(self._dtype).removeprefix("torch.")],
                "shape": list(tensor.shape),
                "data_offsets": [at, end],
            }
            at = end
        head = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
        head += b" " * (-len(head) % 8)
        data = np.memmap(self._header.path, mode="r")
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            for name, tensor in self.pairs.items():
                for rows in _rows(data, tensor, self._order(name, tensor)):
                    kept = rows.to(self._dtype).contiguous().view(torch.uint8).numpy()
                    file.write(kept.data)
                    moved(kept.nbytes)

    def _order(self, name: str, tensor: GgufTensor) -> np.ndarray[Any, Any]:
        """The order in which the tensor's rows become the parameter's."""
        rows = np.arange(tensor.shape[0])
        parts = name.split(".")
        if not self._family.interleaved or parts[-2] not in ("q_proj", "k_proj"):
            return rows
        heads = "num_attention_heads" if parts[-2] == "q_proj" else "num_key_value_heads"
        turned = rows.reshape(self._config[heads], -1, 2).swapaxes(1, 2)
        return turned.reshape(-1)


def rotary_factors(header: GgufHeader) -> list[float] | None:
    """What the file divides each rotary frequency by. Raises UnsupportedModel for odd numbers."""
    tensor = header.tensors.get(FACTORS)
    if tensor is None:
        return None
    _check_kind(header, tensor)
    if len(tensor.shape) != 1 or tensor.shape[0] > 1024:
        raise _misfit(header, FACTORS, f"has the shape {list(tensor.shape)}")
    data = np.memmap(header.path, mode="r")
    rows = _rows(data, tensor, np.arange(tensor.shape[0]))
    factors = [float(factor) for part in rows for factor in part.flatten()]
    if not all(isfinite(factor) and factor > 0 for factor in factors):
        raise _misfit(header, FACTORS, "has a factor that is not above 0")
    return factors


def _outline(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The parameters of the model that the configuration describes, and their shapes."""
    if config["num_hidden_layers"] > len(header.tensors):
        raise _misfit(header, "block_count", f"is {config['num_hidden_layers']}")
    try:
        with BUILDING, torch.device("meta"):
            settings = AutoConfig.for_model(**config)
            model: nn.Module = AutoModelForCausalLM.from_config(settings)
    except Exception as error:  # transformers and torch may raise any error
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedModel(
            f"GGUF file {header.path.name!r} describes a model that cannot be built: {reason}; "
            "convert it again, or give another file"
        ) from error
    return {name: tuple(each.shape) for name, each in model.named_parameters()}


def _pairs(
    header: GgufHeader, family: Family, parameters: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, GgufTensor]]:
    names = get_tensor_name_map(family.arch, len(header.tensors))
    left = {name for name in header.tensors if not name.endswith(_PASS_BY)}
    for name, shape in parameters.items():
        stem, _, kind = name.rpartition(".")
        stored = f"{names.get_name(stem)}.{kind}"
        tensor = header.tensors.get(stored)
        if tensor is None:
            raise _misfit(header, stored, "is missing")
        if tensor.shape != tuple(shape):
            raise _misfit(header, stored, f"has the shape {tensor.shape}, not {tuple(shape)}")
        _check_kind(header, tensor)
        left.discard(stored)
        yield name, tensor
    if left:
        raise UnsupportedModel(
            f"GGUF file {header.path.name!r} has {len(left)} tensors that a model of type "
            f"{family.model_type} does not have, {min(left)[:60]!r} first: give the model's folder "
            "or hub id instead"
        )


def _check_kind(header: GgufHeader, tensor: GgufTensor) -> None:
    read = _READ if len(tensor.shape) > 1 else _PLAIN
    if tensor.kind not in read:
        raise UnsupportedModel(
            f"tensor {tensor.name!r} of GGUF file {header.path.name!r} is quantised as "
            f"{tensor.kind.name}, which is not read: give a file in F16, BF16, Q8_0, Q4_0, Q4_1 or "
            "a K-quantisation (Q2_K to Q6_K)"
        )


def _rows(
    data: np.ndarray[Any, Any], tensor: GgufTensor, order: np.ndarray[Any, Any]
) -> Iterator[Tensor]:
    """The numbers of a tensor in float32, some of its rows at a time, in this order."""
    width = tensor.shape[1] if len(tensor.shape) > 1 else 1
    rows = data[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape[0], -1)
    step = max(1, _CHUNK // width)
    for start in range(0, len(rows), step):
        with np.errstate(all="ignore"):  # a scale that is no number is found when the model runs
            numbers = dequantize(rows[order[start : start + step]], tensor.kind)
        yield torch.from_numpy(np.ascontiguousarray(numbers, np.float32))


def _misfit(header: GgufHeader, name: str, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"GGUF file {header.path.name!r} does not fit its own header: {name} {what}; download or "
        "convert it again"
    )
