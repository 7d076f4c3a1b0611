"""Which blocks of KV memory belong to which sequence. Knows no tensors and no policy."""

from server.engine.sequence import Sequence


class BlockPool:
    """`num_total` blocks of `block_tokens` tokens each, handed out whole and taken back whole.

    A sequence owns its blocks through `Sequence.blocks`, in the order of its tokens: token `p`
    lives in `blocks[p // block_tokens]` at offset `p % block_tokens`.
    """

    def __init__(self, num_total: int, block_tokens: int) -> None:
        if num_total < 1 or block_tokens < 1:
            raise ValueError(f"{num_total} blocks of {block_tokens} tokens hold nothing")
        self.num_total = num_total
        self.block_tokens = block_tokens
        # Taken from the end: the block freed last is the likeliest to be in a cache still.
        self._free = list(range(num_total - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def need(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks that `sequence` still lacks to hold its first `num_tokens` tokens."""
        return max(-(-num_tokens // self.block_tokens) - len(sequence.blocks), 0)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give `sequence` the blocks it needs for `num_tokens`; False leaves all as it was."""
        need = self.need(sequence, num_tokens)
        if need > len(self._free):
            return False
        sequence.blocks += (self._free.pop() for _ in range(need))
        return True

    def free(self, sequence: Sequence) -> None:
        """Take all blocks back; to run again, the sequence computes all its tokens anew."""
        self._free += reversed(sequence.blocks)
        sequence.blocks.clear()
        sequence.num_computed = 0
