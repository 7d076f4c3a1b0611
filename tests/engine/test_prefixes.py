"""Blocks found again by what they hold: never another's keys and values, and none is ever lost."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine.blocks import BlockPool
from server.engine.sequence import SamplingParams, Sequence

SIZE = 3
CONTENTS = ("", "one adapter", "another")

Beginning = tuple[str, tuple[int, ...]]


@dataclass(eq=False)
class Growing:
    """A sequence and the tokens that it will turn out to have; some are not known yet."""

    sequence: Sequence
    ahead: list[int] = field(default_factory=list)

    def beginning(self, length: int) -> Beginning:
        tokens = (*self.sequence.prompt, *self.sequence.output, *self.ahead)
        return self.sequence.content, tokens[:length]


class Memory:
    """What stands in each place of each block: all that went into that token's keys and values."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], Beginning] = {}

    def write(self, growing: Growing, start: int, stop: int) -> None:
        for token in range(start, stop):
            self._places[self._place(growing, token)] = growing.beginning(token + 1)

    def check(self, growing: Growing) -> None:
        """The sequence reads what it would have computed itself."""
        for token in range(growing.sequence.num_computed):
            assert self._places[self._place(growing, token)] == growing.beginning(token + 1)

    def _place(self, growing: Growing, token: int) -> tuple[int, int]:
        return growing.sequence.blocks[token // SIZE], token % SIZE


class Pools(RuleBasedStateMachine):
    """Random sequences over few tokens, so that many begin alike, in a pool that is too small."""

    total = 9

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(self.total, SIZE)
        self.memory = Memory()
        self.alive: list[Growing] = []
        self.shared: set[Beginning] = set()

    def pick(self, data: st.DataObject) -> Growing:
        return data.draw(st.sampled_from(self.alive))

    @rule(
        length=st.integers(1, 14),
        change=st.integers(0, 14),
        content=st.sampled_from(CONTENTS),
        scored=st.sampled_from((False, False, False, True)),
        computed=st.integers(0, 14),
    )
    def start(self, length: int, change: int, content: str, scored: bool, computed: int) -> None:
        params = SamplingParams(max_tokens=20, prompt_logprobs=scored)
        prompt = tuple(int(place == change) for place in range(length))
        growing = Growing(Sequence(0, prompt, params, seed=0, content=content))
        self.alive.append(growing)
        self.find(growing)
        self.run(growing, computed)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def reuse(self, data: st.DataObject) -> None:
        self.find(self.pick(data))

    def find(self, growing: Growing) -> None:
        sequence = growing.sequence
        before = sequence.num_computed
        key = self.pool.next_key(sequence)
        self.pool.reuse(sequence)
        gained = sequence.num_computed - before
        assert gained >= 0
        if gained:
            assert key is not None
            assert sequence.num_computed % SIZE == 0
            assert sequence.num_computed < sequence.num_known
            assert not sequence.params.prompt_logprobs
            for length in range(before // SIZE * SIZE + SIZE, sequence.num_computed + 1, SIZE):
                assert growing.beginning(length) in self.shared

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), length=st.integers(1, 8))
    def compute(self, data: st.DataObject, length: int) -> None:
        self.run(self.pick(data), length)

    def run(self, growing: Growing, length: int) -> None:
        sequence = growing.sequence
        start = sequence.num_computed
        stop = min(start + length, sequence.num_known + len(growing.ahead))
        blocks, free = list(sequence.blocks), self.pool.num_free
        if not self.pool.grow(sequence, stop):
            assert (sequence.blocks, self.pool.num_free) == (blocks, free)
            assert self.pool.need(sequence, stop) > free
            return
        others = {
            it for other in self.alive for it in other.sequence.blocks if other is not growing
        }
        written = sequence.blocks[start // SIZE : -(-stop // SIZE)]
        assert not others & set(written), "a block that somebody else reads is written"
        self.memory.write(growing, start, stop)
        sequence.num_computed = stop

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), token=st.integers(0, 1), length=st.integers(0, 1))
    def sample(self, data: st.DataObject, token: int, length: int) -> None:
        growing = self.pick(data)
        if growing.ahead:
            growing.sequence.output.append(growing.ahead.pop())
        self.run(growing, 14)
        if growing.sequence.num_computed == growing.sequence.num_known:
            growing.ahead.append(token)
            self.run(growing, length)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def learn(self, data: st.DataObject) -> None:
        growing = self.pick(data)
        growing.sequence.output += growing.ahead
        growing.ahead.clear()

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        growing = self.pick(data)
        self.note(growing)
        self.pool.share(growing.sequence)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), ends=st.booleans())
    def free(self, data: st.DataObject, ends: bool) -> None:
        growing = self.pick(data)
        self.note(growing)
        self.pool.free(growing.sequence)
        assert (growing.sequence.blocks, growing.sequence.num_computed) == ([], 0)
        if ends:
            self.alive.remove(growing)

    @rule()
    def forget(self) -> None:
        for growing in self.alive:
            self.pool.free(growing.sequence)
        self.pool.forget()
        self.shared.clear()

    def note(self, growing: Growing) -> None:
        sequence = growing.sequence
        whole = min(sequence.num_computed, sequence.num_known) // SIZE
        self.shared |= {growing.beginning(place * SIZE + SIZE) for place in range(whole)}

    @invariant()
    def everybody_reads_what_is_theirs(self) -> None:
        for growing in self.alive:
            self.memory.check(growing)

    @invariant()
    def no_block_is_lost_or_handed_out_twice(self) -> None:
        held = [set(growing.sequence.blocks) for growing in self.alive]
        assert [len(it) for it in held] == [len(it.sequence.blocks) for it in self.alive]
        assert self.pool.num_free == self.total - len(set[int]().union(*held))

    def teardown(self) -> None:
        for growing in self.alive:
            self.pool.free(growing.sequence)
        assert self.pool.num_free == self.total
        last = Sequence(0, (9,) * (self.total * SIZE), SamplingParams(), seed=0)
        assert self.pool.grow(last, last.num_tokens), "a block is lost"
        assert sorted(last.blocks) == list(range(self.total))


class RoomyPools(Pools):
    """Where nothing has to go, all that was shared is found."""

    total = 2000

    def find(self, growing: Growing) -> None:
        sequence = growing.sequence
        most = 0 if sequence.params.prompt_logprobs else (sequence.num_known - 1) // SIZE
        place = sequence.num_computed // SIZE
        while place < most and growing.beginning(place * SIZE + SIZE) in self.shared:
            place += 1
        expected = max(sequence.num_computed, place * SIZE)
        self.pool.reuse(sequence)
        assert sequence.num_computed == expected


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestRoomyPools = RoomyPools.TestCase
TestRoomyPools.settings = settings(max_examples=30, stateful_step_count=50, deadline=None)


def asked(prompt: Seq[int], content: str = "", *, prompt_logprobs: bool = False) -> Sequence:
    params = SamplingParams(prompt_logprobs=prompt_logprobs)
    return Sequence(0, tuple(prompt), params, seed=0, content=content)


def computed(pool: BlockPool, prompt: Seq[int], content: str = "") -> Sequence:
    sequence = asked(prompt, content)
    assert pool.grow(sequence, len(prompt))
    sequence.num_computed = len(prompt)
    return sequence


@pytest.mark.parametrize(
    ("length", "found"), [(1, 0), (7, 0), (8, 0), (9, 8), (15, 8), (16, 8), (17, 16), (24, 16)]
)
def test_whole_blocks_are_found_and_one_token_is_left(length: int, found: int) -> None:
    pool = BlockPool(20, 8)
    pool.free(computed(pool, range(24)))
    sequence = asked(range(length))
    pool.reuse(sequence)
    assert (sequence.num_computed, sequence.num_reused) == (found, found)
    assert pool.need(sequence, length) == -(-length // 8) - found // 8


def test_a_part_of_a_block_is_never_found() -> None:
    pool = BlockPool(20, 8)
    pool.free(computed(pool, range(15)))
    sequence = asked(range(30))
    pool.reuse(sequence)
    assert sequence.num_computed == 8


@pytest.mark.parametrize(("mine", "other"), [("", "a"), ("a", ""), ("a", "b")])
def test_another_adapter_finds_nothing(mine: str, other: str) -> None:
    pool = BlockPool(20, 4)
    pool.free(computed(pool, range(13), mine))
    stranger, friend = asked(range(13), other), asked(range(13), mine)
    pool.reuse(stranger)
    pool.reuse(friend)
    assert (stranger.num_computed, friend.num_computed) == (0, 12)


def test_a_block_with_another_beginning_is_another() -> None:
    pool = BlockPool(20, 4)
    pool.free(computed(pool, [1, 2, 3, 4, 5, 6, 7, 8]))
    sequence = asked([0, 2, 3, 4, 5, 6, 7, 8, 9])
    pool.reuse(sequence)
    assert sequence.num_computed == 0


def test_the_least_recently_used_goes_first_and_of_one_sequence_its_end() -> None:
    pool = BlockPool(6, 2)
    for first in (10, 20, 30):
        pool.free(computed(pool, [first, 0, 0, 0]))
    used = asked([10, 0, 0, 0, 0])
    pool.reuse(used)
    pool.free(used)
    assert pool.num_free == 6
    assert pool.grow(asked([1]), 1)
    assert found_lengths(pool) == {10: 4, 20: 2, 30: 4}
    assert pool.grow(asked([1]), 3)
    assert found_lengths(pool) == {10: 4, 20: 0, 30: 2}


def found_lengths(pool: BlockPool) -> dict[int, int]:
    """How much is found of each prompt. Leaves the order of use as it was: oldest asked first."""
    found = {}
    for first in (20, 30, 10):
        sequence = asked([first, 0, 0, 0, 0])
        pool.reuse(sequence)
        found[first] = sequence.num_computed
        pool.free(sequence)
    return found


def test_what_others_hold_costs_nothing_and_stays() -> None:
    pool = BlockPool(5, 4)
    first = computed(pool, range(17))
    pool.share(first)
    second = asked(range(17))
    pool.reuse(second)
    assert second.blocks == first.blocks[:4]
    assert pool.num_free == 0
    assert not pool.grow(second, 17)
    pool.free(first)
    assert pool.num_free == 1
    assert pool.grow(second, 17)


def test_a_token_that_only_the_device_knows_is_in_no_key() -> None:
    pool = BlockPool(10, 4)
    sequence = computed(pool, [1, 2, 3])
    assert pool.grow(sequence, 4)
    sequence.num_computed = 4  # launched: the fourth token's id is not here yet
    pool.share(sequence)
    assert sequence.num_shared == 0
    sequence.output.append(7)
    pool.share(sequence)
    heir = asked([1, 2, 3, 7, 8])
    pool.reuse(heir)
    assert heir.num_computed == 4


def test_nothing_is_found_after_a_failure_or_where_reuse_is_off() -> None:
    pool, off = BlockPool(10, 4), BlockPool(10, 4, prefix_cache=False)
    for each in (pool, off):
        each.free(computed(each, range(9)))
    pool.forget()
    for each in (pool, off):
        sequence = asked(range(9))
        each.reuse(sequence)
        assert (sequence.num_computed, each.num_free) == (0, 10)
    assert off.next_key(asked(range(9))) is None


def test_who_wants_every_logit_finds_nothing_but_is_found() -> None:
    pool = BlockPool(10, 4)
    scored = asked(range(9), prompt_logprobs=True)
    assert pool.grow(scored, 9)
    scored.num_computed = 9
    pool.free(scored)
    pool.reuse(scored)
    assert scored.num_computed == 0
    plain = asked(range(9))
    pool.reuse(plain)
    assert plain.num_computed == 8


def test_a_begun_block_gives_way_to_a_whole_one() -> None:
    pool = BlockPool(10, 4)
    slow, fast = asked(range(12)), computed(pool, range(12))
    assert pool.grow(slow, 6)
    slow.num_computed = 6
    own = list(slow.blocks)
    pool.share(fast)
    pool.reuse(slow)
    assert slow.blocks == [own[0], fast.blocks[1]]
    assert (slow.num_computed, slow.num_reused, pool.num_free) == (8, 2, 6)
