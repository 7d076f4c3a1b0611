"""Which blocks of KV memory belong to which sequence. Knows no tensors and no policy."""

from server.engine.sequence import Sequence


class BlockPool:
    """`total` blocks of `block_tokens` tokens each, handed out whole and taken back whole.

    A sequence owns its blocks through `Sequence.blocks`, in the order of its tokens: token `p`
    lives in `blocks[p // block_tokens]` at offset `p % block_tokens`.
    """

    def __init__(self, total: int, block_tokens: int) -> None:
        if total < 1 or block_tokens < 1:
            raise ValueError(f"total={total} and block_tokens={block_tokens} must be at least 1")
        self.total = total
        self.block_tokens = block_tokens
        # Taken from the end: the block freed last is the likeliest to be in a cache still.
        self._free = list(range(total - 1, -1, -1))

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens; more than `total` means: can never run here."""
        return -(-tokens // self.block_tokens)

    def need(self, sequence: Sequence, tokens: int) -> int:
        """Further blocks that `sequence` needs to compute its next `tokens` tokens."""
        return max(self.blocks_for(sequence.num_computed + tokens) - len(sequence.blocks), 0)

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Give `sequence` room for its next `tokens` tokens, or do nothing and say False."""
        need = self.need(sequence, tokens)
        if need > len(self._free):
            return False
        if need:
            sequence.blocks += self._free[: -need - 1 : -1]
            del self._free[-need:]
        return True

    def release(self, sequence: Sequence) -> None:
        """Take all blocks back; to run again, the sequence computes all its tokens anew."""
        self._free += reversed(sequence.blocks)
        sequence.blocks.clear()
        sequence.num_computed = 0
