"""Reuse of equal beginnings in a real engine: answers stay what they are, whatever happens."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from adapters_store.manifest import AdapterRef
from server.bases.model import BaseModel
from tests.adapters.made import Made, make_adapter
from tests.models import VOCAB
from tests.scheduler.house import House

Build = Callable[..., House]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    houses: list[House] = []

    def new(**options: int | bool) -> House:
        houses.append(House(tmp_path / str(len(houses)), **options))  # type: ignore[arg-type]
        return houses[-1]

    torch.set_num_threads(1)
    yield new
    for house in houses:
        house.close()


def prompt_of(length: int) -> list[int]:
    rng = random.Random(length % 7)
    return [rng.randrange(VOCAB) for _ in range(length)]


def pets(base: BaseModel, count: int) -> list[Made]:
    return [make_adapter(base, draw=draw) for draw in range(1, count + 1)]


@pytest.mark.parametrize(
    ("length", "found"), [(1, 0), (4, 0), (5, 4), (15, 12), (16, 12), (17, 16), (20, 16)]
)
def test_the_second_of_two_equal_questions_computes_the_rest(
    build: Build, length: int, found: int
) -> None:
    house = build()
    first, second = (house.ask(prompt_of(length)).wait() for _ in range(2))
    assert (first.cached, second.cached) == ([0], [found])
    assert second.tokens == first.tokens
    house.check(second, None)
    assert house.count("prefix_cache_queries") == 2 * length
    assert house.count("prefix_cache_hits") == found


def test_a_conversation_finds_its_own_answers(build: Build) -> None:
    house = build()
    first = house.ask(prompt_of(10)).wait()
    second = house.ask([*first.prompt, *first.tokens[0], 5, 6, 7])
    house.check(second, None)
    assert second.cached == [16]  # of 17: the answer's last token is never computed


def test_answers_to_one_question_share_its_prompt(build: Build) -> None:
    house = build()
    said = house.ask(prompt_of(18), n=3)
    house.check(said, None)
    assert said.cached == [0, 16, 16]


def test_the_same_content_is_shared_whoever_owns_it(build: Build) -> None:
    house = build()
    (made,) = pets(house.plain, 1)
    anns = house.served.publish(made, "cat")
    bobs = house.served.store.publish("bob", "dog", made.manifest, made.tensors)
    for ref, found in ((anns, [0]), (bobs, [8])):
        said = house.ask(prompt_of(9), ref)
        house.check(said, made)
        assert said.cached == found


@pytest.mark.parametrize("with_adapter", [False, True])
def test_nobody_finds_what_another_asked(build: Build, with_adapter: bool) -> None:
    """Neither another owner, nor who does not know the salt; not even by an adapter of both."""
    house = build()
    (made,) = pets(house.plain, 1)
    ref = house.served.publish(made, "shared") if with_adapter else None
    askers = [("ann", ""), ("bob", ""), ("ann", "s"), ("ann", "t"), ("bob", "s")]
    askers += [("ann', 's", ""), ("ann\0s", ""), ("anns", ""), ("", "anns")]
    for found in ([0], [8]):
        for owner, salt in askers:
            said = house.ask(prompt_of(9), ref, owner=owner, salt=salt)
            house.check(said, made if with_adapter else None)
            assert said.cached == found, (owner, salt)


def test_owners_asking_at_once_share_nothing(build: Build) -> None:
    house = build()
    said = [house.ask(prompt_of(18), n=2, owner=owner) for owner in ("ann", "bob")]
    for each in said:
        house.check(each, None)
        assert each.cached == [0, 16]


def test_an_operator_may_open_it_but_salts_stay(build: Build) -> None:
    house = build(across_owners=True)
    askers = [("ann", "", 0), ("bob", "", 8), ("ann", "s", 0), ("bob", "s", 8), ("bob", "t", 0)]
    for owner, salt, found in askers:
        assert house.ask(prompt_of(9), owner=owner, salt=salt).wait().cached == [found]


def test_scores_of_a_prompt_are_all_computed(build: Build) -> None:
    house = build()
    fresh = house.ask(prompt_of(16), prompt_logprobs=True).wait()
    again = house.ask(prompt_of(16), prompt_logprobs=True).wait()
    assert again.cached == [0]
    assert again.scores == fresh.scores
    assert again.scores is not None and len(again.scores) == 16
    assert house.count("prefix_cache_queries") == 0
    assert house.ask(prompt_of(16)).wait().cached == [12], "but others find what was computed"


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("options", [{"max_step_tokens": 9}, {"blocks": 21}], ids=str)
def test_answers_are_the_same_in_chunks_and_after_preemption(
    build: Build, prefix_cache: bool, options: dict[str, int]
) -> None:
    house = build(prefix_cache=prefix_cache, **options)
    users: list[tuple[AdapterRef | None, Made | None]] = [(None, None)]
    users += [(house.served.publish(made), made) for made in pets(house.plain, 2)]
    for ref, made in users:  # loaded, so that all of them then run at once
        house.check(house.ask([1], ref), made)
    asked = [
        (house.ask(prompt_of(length), ref), made)
        for length in (16, 16, 23, 9)
        for ref, made in users
    ]
    for said, made in asked:
        house.check(said, made)
    assert (house.count("prefix_cache_hits") > 0) == prefix_cache
    assert (house.count("num_preemptions") > 0) == ("blocks" in options)


def test_no_adapter_ever_reads_what_another_computed(build: Build) -> None:
    """Interleaved, evicted and returned, renewed under the same name, replaced under the same
    version: over one prompt, in two slots.
    """
    house = build(slots=2)
    a, b, c, d = pets(house.plain, 4)
    adapters = house.served.adapters
    ref_a, ref_b = (house.served.publish(made, name) for made, name in ((a, "a"), (b, "b")))
    prompt = prompt_of(16)

    def ask_all(rounds: int) -> list[int]:
        users = [(None, None), (ref_a, a), (ref_b, b), (ref_c, c)] * rounds
        asked = [(house.ask(prompt, ref), made) for ref, made in users]
        for said, made in asked:
            house.check(said, made)
        return [said.cached[0] for said, _ in asked]

    ref_c = house.served.publish(c, "a")  # a@2: a's name, other vectors
    assert (ref_c.name, ref_c.version) == (ref_a.name, 2)
    first = ask_all(rounds=3)
    assert sorted(first) == [0] * 4 + [12] * 8
    assert adapters.evictions > 0
    assert ask_all(rounds=2) == [12] * 8, "found again by those that had left and returned"

    adapters.forget(ref_a)
    shutil.rmtree(house.folder / "ann" / "a")
    assert house.served.publish(d, "a") == ref_a  # a@1 once more, replaced behind the server
    for cached in (0, 12):
        said = house.ask(prompt, ref_a)
        house.check(said, d)
        assert said.cached == [cached]
