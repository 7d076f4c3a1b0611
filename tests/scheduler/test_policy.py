"""Who runs next, without engine or threads."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.engine.blocks import BlockPool
from server.engine.sequence import SamplingParams, Sequence
from server.scheduler.policy import plan_step
from server.scheduler.turns import Account


def sequence(seq_id: int, prompt: int, first: int | None = None) -> Sequence:
    """A prompt like no other's, unless its `first` token is given."""
    start = 1000 * seq_id if first is None else first
    return Sequence(seq_id, tuple(range(start, start + prompt)), SamplingParams(), seed=0)


def compute(made: Sequence, tokens: int, pool: BlockPool) -> Sequence:
    assert pool.grow(made, tokens)
    made.num_computed = tokens
    return made


def test_decodes_come_first_and_prompts_share_what_is_left() -> None:
    pool = BlockPool(100, 4)
    long_prompt, decoding, short_prompt = sequence(1, 20), sequence(2, 5), sequence(3, 6)
    compute(decoding, 4, pool)
    plan = plan_step([long_prompt, decoding, short_prompt], pool, max_step_tokens=24)
    ran = [(chunk.sequence.seq_id, chunk.length) for chunk in plan.chunks]
    assert ran == [(2, 1), (1, 20), (3, 3)]
    assert plan.preempted == ()


def test_the_youngest_gives_its_memory_to_the_oldest() -> None:
    pool = BlockPool(4, 4)
    old, young = compute(sequence(1, 9), 8, pool), compute(sequence(2, 8), 7, pool)
    plan = plan_step([old, young], pool, max_step_tokens=16)
    assert [chunk.sequence.seq_id for chunk in plan.chunks] == [1]
    assert plan.preempted == (young,)
    assert (young.blocks, young.num_computed) == ([], 0)


def test_prompts_of_owners_take_turns_and_the_one_served_most_yields() -> None:
    pool = BlockPool(6, 4)
    ahead: Account[Any] = Account(served=100.0)
    behind: Account[Any] = Account(served=95.0)
    made = [sequence(number, 8) for number in range(4)]
    whose = dict(zip(made, (ahead, ahead, behind, behind), strict=True))
    plan = plan_step(made, pool, 20, lambda: whose)
    assert plan.chunks == ((made[2], 8), (made[0], 8), (made[3], 4))
    made[2].num_computed, made[2].output = 8, [1]
    plan = plan_step(made, pool, 12, lambda: whose)  # two blocks more, of which one is free
    assert plan.chunks == ((made[2], 1), (made[3], 8))
    assert plan.preempted == (made[1], made[0])


def test_of_equal_beginnings_one_runs_and_the_rest_find_it() -> None:
    pool = BlockPool(100, 4)
    running = [sequence(index, 18, first=0) for index in range(3)]
    other = sequence(7, 5)
    first = plan_step([*running, other], pool, max_step_tokens=100)
    assert first.chunks == ((running[0], 18), (other, 5))
    running[0].num_computed, running[0].output = 18, [0]
    second = plan_step(running, pool, max_step_tokens=100)
    assert second.chunks == ((running[0], 1), (running[1], 2), (running[2], 2))
    assert running[1].blocks[:4] == running[2].blocks[:4] == running[0].blocks[:4]


@given(
    prompts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    total=st.integers(10, 20),
    budget=st.integers(8, 40),
)
def test_every_plan_fits_and_the_oldest_always_advances(
    prompts: list[int], total: int, budget: int
) -> None:
    pool = BlockPool(total, 4)
    running = [sequence(index, length) for index, length in enumerate(prompts)]
    for _ in range(30):
        plan = plan_step(running, pool, budget)
        assert any(chunk.sequence is running[0] for chunk in plan.chunks)
        assert sum(chunk.length for chunk in plan.chunks) <= budget
        assert not {id(chunk.sequence) for chunk in plan.chunks} & {id(s) for s in plan.preempted}
        for chunk in plan.chunks:
            held = len(chunk.sequence.blocks) * pool.block_tokens
            assert held >= chunk.sequence.num_computed + chunk.length
            completes = chunk.length == chunk.sequence.remaining
            grows = completes and chunk.sequence.num_tokens < total * 4
            chunk.sequence.num_computed += chunk.length
            if grows:
                chunk.sequence.output.append(1)
        running = [s for s in running if s not in plan.preempted and s.remaining > 0]
        held_blocks = sum(len(s.blocks) for s in running)
        assert held_blocks + pool.num_free <= total
        if not running:
            return
