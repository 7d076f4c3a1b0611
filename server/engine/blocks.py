"""Allots blocks of KV memory to sequences, and lets sequences that begin alike share them.

A block whose tokens are all computed gets a key: a hash of the owner and its salt, of the adapter's
content, of the block's tokens, and of the key of the block before. So equal keys mean an equal
beginning under equal weights, and no owner learns from a fast answer what another asked. A sequence
that begins in the same way shares such blocks and computes only the rest; a whole block is never
written again. A block that no sequence holds keeps its key until its memory is needed, the least
recently used first. Knows no tensors and no policy.
"""

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from struct import Struct

from server.engine.sequence import Sequence


class BlockPool:
    """`num_total` blocks of `block_tokens` tokens each, handed out whole and taken back whole.

    A sequence holds its blocks through `Sequence.blocks`, in the order of its tokens: token `p`
    lives in `blocks[p // block_tokens]` at offset `p % block_tokens`.

    Args:
        prefix_cache: share blocks among sequences that begin alike; without it, no block has a key.
        across_owners: share them among sequences of different owners too.
    """

    def __init__(
        self,
        num_total: int,
        block_tokens: int,
        *,
        prefix_cache: bool = True,
        across_owners: bool = False,
    ) -> None:
        if num_total < 1 or block_tokens < 1:
            raise ValueError(
                f"a pool of {num_total} blocks of {block_tokens} tokens holds nothing: give at "
                "least one block of one token"
            )
        self.num_total = num_total
        self.block_tokens = block_tokens
        self._prefix_cache = prefix_cache
        self._across_owners = across_owners
        self._packed = Struct(f"{block_tokens}q").pack
        self._holders = [0] * num_total
        # Taken from the end: the block freed last is the likeliest to be in a processor's cache.
        self._unkeyed = list(range(num_total - 1, -1, -1))
        self._reusable: OrderedDict[int, None] = OrderedDict()  # free, with a key; oldest first
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds, with a key or without."""
        return len(self._unkeyed) + len(self._reusable)

    def need(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks that `sequence` still lacks to hold its first `num_tokens` tokens."""
        return max(-(-num_tokens // self.block_tokens) - len(sequence.blocks), 0)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give `sequence` the blocks it needs for `num_tokens`; False leaves all as it was."""
        need = self.need(sequence, num_tokens)
        if need > self.num_free:
            return False
        sequence.blocks += (self._take() for _ in range(need))
        return True

    def free(self, sequence: Sequence) -> None:
        """Take all blocks back; to run again, the sequence reuses or recomputes its tokens."""
        self.share(sequence)
        self._release(sequence.blocks)
        sequence.blocks = []  # a new list: to hold the old one is to know that it only ever grew
        sequence.num_computed = sequence.num_shared = 0

    def share(self, sequence: Sequence) -> None:
        """Let other sequences reuse the whole blocks that `sequence` has computed.

        Blocks of a launched step count, since later steps run after it; but the host must know the
        ids of their tokens.
        """
        size = self.block_tokens
        if not self._prefix_cache or sequence.num_computed - sequence.num_shared < size:
            return
        whole = min(sequence.num_computed, sequence.num_known) // size
        for place in range(sequence.num_shared // size, whole):
            key, block = self._key(sequence, place), sequence.blocks[place]
            if key not in self._block_of:  # else another sequence has computed the same
                self._block_of[key] = block
                self._key_of[block] = key
        sequence.num_shared = whole * size

    def reuse(self, sequence: Sequence) -> None:
        """Give `sequence` the shared blocks of its next tokens, as if it had computed them.

        At least one token is left to compute, because an answer needs the logits of the last.
        """
        size = self.block_tokens
        start = sequence.num_computed // size
        shared: list[int] = []
        for place in range(start, self._most_reusable(sequence)):
            block = self._block_of.get(self._key(sequence, place))
            if block is None:
                break
            shared.append(block)
        if not shared:
            return
        for block in shared:
            self._holders[block] += 1
            self._reusable.pop(block, None)
        self._release(sequence.blocks[start:])  # a partial block, now replaced by a whole one
        sequence.blocks = [*sequence.blocks[:start], *shared]
        self._count_reused(sequence, (start + len(shared)) * size)

    def next_key(self, sequence: Sequence) -> bytes | None:
        """The key of the block that `sequence` computes next, if it may reuse another's."""
        place = sequence.num_computed // self.block_tokens
        return self._key(sequence, place) if place < self._most_reusable(sequence) else None

    def forget(self) -> None:
        """Drop all keys: a step failed, and nobody knows what it wrote.

        Sequences that hold blocks which the failed step was to compute must be freed first.
        """
        self._unkeyed += self._reusable
        self._reusable.clear()
        self._block_of.clear()
        self._key_of.clear()

    def _most_reusable(self, sequence: Sequence) -> int:
        """How many whole blocks `sequence` may take from others."""
        if not self._prefix_cache or sequence.params.prompt_logprobs:  # which need all logits
            return 0
        return (sequence.num_known - 1) // self.block_tokens

    def _key(self, sequence: Sequence, place: int) -> bytes:
        """The key of a sequence's whole block; each is hashed once in a sequence's life."""
        keys, size = sequence.block_keys, self.block_tokens
        while len(keys) <= place:
            before = keys[-1] if keys else self._root(sequence)
            tokens = sequence.tokens(len(keys) * size, (len(keys) + 1) * size)
            keys.append(_hash(before + self._packed(*tokens)))
        return keys[place]

    def _root(self, sequence: Sequence) -> bytes:
        """What the key of the first block begins with."""
        owner = "" if self._across_owners else sequence.owner
        return _hash(repr((owner, sequence.cache_salt, sequence.content)).encode())

    def _count_reused(self, sequence: Sequence, num_computed: int) -> None:
        """Advance `num_computed`; `num_reused` too while the answer has no token."""
        if not sequence.output:
            before = sequence.num_reused if sequence.num_computed else 0
            sequence.num_reused = before + num_computed - sequence.num_computed
        sequence.num_computed = sequence.num_shared = num_computed

    def _take(self) -> int:
        if self._unkeyed:
            block = self._unkeyed.pop()
        else:
            block, _ = self._reusable.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        self._holders[block] = 1
        return block

    def _release(self, blocks: Iterable[int]) -> None:
        for block in reversed([*blocks]):  # a block is useless without those before it
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._key_of:
                self._reusable[block] = None
            else:
                self._unkeyed.append(block)


def _hash(data: bytes) -> bytes:
    """Of 256 bits: nobody can construct two beginnings with one key."""
    return blake2b(data, digest_size=32).digest()
