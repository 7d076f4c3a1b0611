"""The memory of keys and values, in blocks. Knows no sequences; `BlockPool` allots the blocks."""

import torch
from torch import Tensor

from server.bases.model import BaseModel
from server.errors import UnsupportedModel

_MIB = 1 << 20


def token_bytes(base: BaseModel) -> int:
    """The bytes that keys and values of one token take, in all layers."""
    return 2 * base.num_layers * base.num_kv_heads * base.head_dim * base.dtype.itemsize


class KVCache:
    """Per layer a tensor of keys and one of values, [kv_heads, blocks, block_tokens, head_dim].

    The keys of one head and one sequence lie in runs of whole blocks: a gather copies long pieces,
    and attention's products read memory in order. On a CPU that halves their time against heads
    side by side. All memory is taken at construction and never grows.

    Raises:
        ValueError: `memory_mb` holds less than two blocks, or more than the device has.
    """

    def __init__(self, base: BaseModel, *, memory_mb: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.num_kv_heads = base.num_kv_heads
        self.head_dim = base.head_dim
        self.dtype = base.dtype
        self.device = base.device
        block_bytes = token_bytes(base) * block_tokens
        self.num_blocks = memory_mb * _MIB // block_bytes
        if self.num_blocks < 2:
            raise ValueError(
                f"kv_memory_mb={memory_mb} does not hold two blocks of {block_tokens} tokens, each "
                f"of {block_bytes / _MIB:.1f} MiB for this model: raise kv_memory_mb"
            )
        # One block more than is handed out: the padding of a captured step writes there.
        self._stored_blocks = self.num_blocks + 1
        shape = (base.num_kv_heads, self._stored_blocks, block_tokens, base.head_dim)
        try:
            # Zeros, because attention reads whole blocks: memory never written must be finite.
            self.layers = [(self._zeros(shape), self._zeros(shape)) for _ in range(base.num_layers)]
        except RuntimeError as error:  # torch's out-of-memory errors are RuntimeErrors
            raise ValueError(
                f"the device {base.device} has too little free memory for "
                f"kv_memory_mb={memory_mb}: lower it"
            ) from error

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    @property
    def sink(self) -> int:
        """The place where padding tokens are written; nothing reads it."""
        return self.num_blocks * self.block_tokens

    def places(self, tokens: Tensor) -> Tensor:
        """The index that `write` takes for some tokens, int64 [kv_heads * n].

        Args:
            tokens: int64 [n], `block * block_tokens + offset` of each token.
        """
        return self._per_head(tokens, self._stored_blocks * self.block_tokens)

    def rows(self, blocks: Tensor) -> Tensor:
        """The index that `read` takes for some blocks, int64 [kv_heads * sequences * n].

        Args:
            blocks: int64 [sequences, n].
        """
        return self._per_head(blocks.flatten(), self._stored_blocks)

    def _per_head(self, index: Tensor, stride: int) -> Tensor:
        heads = torch.arange(self.num_kv_heads, device=self.device)
        return (heads[:, None] * stride + index).flatten()

    def write(self, layer: int, key: Tensor, value: Tensor, places: Tensor) -> None:
        """Store a step's keys and values.

        Args:
            key, value: [1, kv_heads, tokens, head_dim], as transformers' models pass them.

        Raises:
            UnsupportedModel: this layer's keys or values are not of the shape that the cache has.
        """
        expected = (1, self.num_kv_heads, len(places) // self.num_kv_heads, self.head_dim)
        if key.shape != expected or value.shape != expected:
            raise UnsupportedModel(
                f"layer {layer} has keys of shape {tuple(key.shape)} and values of shape "
                f"{tuple(value.shape)}; the engine needs {expected} for both, in every layer"
            )
        for memory, new in zip(self.layers[layer], (key, value), strict=True):
            # A block is read to its end, its unwritten rest included, and 0 * nan is nan: a
            # sequence must not be able to spoil the next holder of its blocks.
            finite = torch.nan_to_num(new).reshape(-1, self.head_dim)
            memory.view(-1, self.head_dim).index_copy_(0, places, finite)

    def read(self, layer: int, rows: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
        """Keys and values of whole blocks, each [kv_heads, sequences, n * block_tokens, head_dim].

        Args:
            rows: the result of `rows` for the blocks of that many sequences.
        """
        shape = (self.num_kv_heads, sequences, -1, self.head_dim)
        keys, values = (
            memory.flatten(0, 1).index_select(0, rows).view(shape) for memory in self.layers[layer]
        )
        return keys, values

    def gather(self, layer: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of single tokens, each [n, kv_heads, head_dim].

        Args:
            places: int64 [n], `block * block_tokens + offset` of each token.
        """
        keys, values = (
            memory.flatten(1, 2).index_select(1, places).transpose(0, 1)
            for memory in self.layers[layer]
        )
        return keys, values
