"""An engine without a model that reads and writes block memory as a real one does, in the order of
launches: a token is a hash of all that its context holds in memory.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from server.engine.sequence import Chunk, Sequence, StepOutput
from tests.scheduler.fakes import FakeStep

VOCAB = 11


def next_token(context: Seq[int]) -> int:
    """What the fake answers to `context`, wherever it is stored."""
    total = 7
    for token in context:
        total = (total * 31 + token + 1) % 1_000_003
    return total % VOCAB


@dataclass
class PagedFake:
    """Launches are checked: blocks are there, pending tokens come from the launch just before.

    A step that fails has written nonsense.
    """

    ahead: int
    block_tokens: int
    fails_at_launch: frozenset[int] = frozenset()
    fails_in_flight: frozenset[int] = frozenset()
    launches: int = 0
    memory: dict[int, int] = field(default_factory=dict)
    last: list[int] = field(default_factory=list)

    def launch(self, chunks: Seq[Chunk]) -> FakeStep:
        number = self.launches
        self.launches += 1
        failure = RuntimeError("a kernel failed")
        spoilt = number in self.fails_at_launch | self.fails_in_flight
        assert len({chunk.sequence for chunk in chunks}) == len(chunks) > 0
        for chunk in chunks:
            self._write(chunk, spoilt)
        if number in self.fails_at_launch:
            raise failure
        results, sampled = [], []
        for chunk in chunks:
            sequence = chunk.sequence
            completes = chunk.length == sequence.remaining
            sequence.num_computed += chunk.length
            if completes:
                sampled.append(sequence)
            results.append(StepOutput(sequence, self._read(sequence) if completes else None))
        self.last = [it.token_id for it in results if it.token_id is not None]
        for source, sequence in enumerate(sampled):
            sequence.pending, sequence.source = sequence.pending + 1, source
        return FakeStep(results, sampled, failure if spoilt else None)

    def _write(self, chunk: Chunk, spoilt: bool) -> None:
        sequence = chunk.sequence
        start, stop = sequence.num_computed, sequence.num_computed + chunk.length
        assert 0 < chunk.length <= sequence.remaining
        most = max(sequence.params.max_tokens, 1)
        assert len(sequence.output) + sequence.pending < most, "a step too many"
        tokens = sequence.tokens(start, stop)
        if sequence.pending and chunk.length == sequence.remaining:
            assert sequence.pending <= self.ahead
            tokens[-1] = self.last[sequence.source]
        for position, token in zip(range(start, stop), tokens, strict=True):
            self.memory[self._place(sequence, position)] = VOCAB if spoilt else token

    def _read(self, sequence: Sequence) -> int:
        places = (self._place(sequence, position) for position in range(sequence.num_computed))
        return next_token([self.memory[place] for place in places])

    def _place(self, sequence: Sequence, position: int) -> int:
        size = self.block_tokens
        return sequence.blocks[position // size] * size + position % size
