"""Who runs next, without engine or threads."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from server.engine.blocks import BlockPool
from server.engine.sequence import SamplingParams, Sequence
from server.scheduler.policy import admission_order, plan_step


@dataclass
class Item:
    owner: str
    arrival: int
    preempted: bool = False


def sequence(seq_id: int, prompt: int, first: int | None = None) -> Sequence:
    """A prompt like no other's, unless its `first` token is given."""
    start = 1000 * seq_id if first is None else first
    return Sequence(seq_id, tuple(range(start, start + prompt)), SamplingParams(), seed=0)


def compute(made: Sequence, tokens: int, pool: BlockPool) -> Sequence:
    assert pool.grow(made, tokens)
    made.num_computed = tokens
    return made


def test_owners_alternate_however_many_requests_one_has() -> None:
    greedy = [Item("greedy", arrival) for arrival in range(4)]
    order = admission_order([*greedy, Item("modest", 10), Item("modest", 11)], [], {})
    assert [item.owner for item in order[:4]] == ["greedy", "modest", "greedy", "modest"]


def test_the_owner_with_less_running_goes_first() -> None:
    order = admission_order([Item("a", 0), Item("b", 1)], ["a", "a"], {})
    assert [item.owner for item in order] == ["b", "a"]


def test_the_owner_served_longest_ago_goes_first() -> None:
    order = admission_order([Item("a", 0), Item("b", 1)], [], {"a": 2, "b": 1})
    assert [item.owner for item in order] == ["b", "a"]


def test_the_preempted_go_before_everyone() -> None:
    order = admission_order([Item("a", 0), Item("b", 5, preempted=True)], ["b"], {})
    assert [item.owner for item in order] == ["b", "a"]


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
