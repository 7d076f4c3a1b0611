"""The memory of keys and values, in blocks. Knows no sequences: see `blocks` for who holds what."""

import torch
from torch import Tensor

from server.bases.model import BaseModel
from server.errors import UnsupportedModel

_MIB = 1 << 20


class KVCache:
    """One tensor per layer, [blocks, block_tokens, kv_heads, 2 * head_dim]: a key, then its value.

    Keys and values of a token lie side by side, so that one gather brings both. All memory is
    taken here, at the start, and never grows.

    Raises:
        ValueError: `memory_mb` holds less than two blocks, or more than the device has.
    """

    def __init__(self, base: BaseModel, *, memory_mb: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.head_dim = base.head_dim
        block_shape = (block_tokens, base.num_kv_heads, 2 * base.head_dim)
        block_bytes = base.num_layers * torch.Size(block_shape).numel() * base.dtype.itemsize
        self.num_blocks = memory_mb * _MIB // block_bytes
        if self.num_blocks < 2:
            raise ValueError(
                f"kv_memory_mb={memory_mb} does not hold two blocks of {block_tokens} tokens, each "
                f"of {block_bytes / _MIB:.1f} MiB for this model: raise kv_memory_mb"
            )
        shape = (self.num_blocks, *block_shape)
        try:
            # Zeros, because attention reads whole blocks: what was never written must be finite.
            self.layers = [
                torch.zeros(shape, dtype=base.dtype, device=base.device)
                for _ in range(base.num_layers)
            ]
        except RuntimeError as error:  # torch's out-of-memory errors are RuntimeErrors
            raise ValueError(
                f"the {base.device} has no room for kv_memory_mb={memory_mb}: lower it"
            ) from error

    def write(self, layer: int, key: Tensor, value: Tensor, at: Tensor) -> None:
        """Store a step's keys and values.

        Args:
            key, value: [1, kv_heads, tokens, head_dim], as transformers' models hand them over.
            at: int64 [tokens], `block * block_tokens + offset` of each token.

        Raises:
            UnsupportedModel: this layer's keys or values are not of the shape that the cache has.
        """
        memory = self.layers[layer].flatten(0, 1)
        pairs = torch.cat((key[0], value[0]), dim=-1).transpose(0, 1)
        if pairs.shape[1:] != memory.shape[1:] or key.shape != value.shape:
            raise UnsupportedModel(
                f"layer {layer} has keys of shape {tuple(key.shape)} and values of shape "
                f"{tuple(value.shape)}; the engine needs {memory.shape[1]} heads of "
                f"{self.head_dim} for both, the same in every layer"
            )
        # A block is read to its end, unwritten rest included, and 0 * nan is nan: what one
        # sequence leaves behind must never be able to spoil the next holder of its blocks.
        memory.index_copy_(0, at, torch.nan_to_num(pairs))

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of whole blocks.

        Args:
            blocks: int64 [rows, n].

        Returns: two views, each [rows, kv_heads, n * block_tokens, head_dim].
        """
        rows, count = blocks.shape
        pairs = self.layers[layer].index_select(0, blocks.flatten())
        pairs = pairs.view(rows, count * self.block_tokens, *pairs.shape[2:]).transpose(1, 2)
        return pairs[..., : self.head_dim], pairs[..., self.head_dim :]
