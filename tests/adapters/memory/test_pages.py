"""Free pages: what is taken is nobody else's, what is given back joins up again."""

from hypothesis import given, settings
from hypothesis import strategies as st

from server.adapters.memory.pages import FreePages


def test_pages_are_given_from_the_first_on() -> None:
    pages = FreePages(10, 6)
    assert [pages.take(2), pages.take(3), pages.take(2), pages.take(1)] == [10, 12, None, 15]
    assert pages.free == 0


def test_neighbours_join_whatever_the_order() -> None:
    pages = FreePages(0, 9)
    starts = [pages.take(3) for _ in range(3)]
    for start in (starts[1], starts[0], starts[2]):
        assert start is not None
        assert pages.take(9) is None
        pages.give(start, 3)
    assert pages.take(9) == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=60))
def test_no_page_is_ever_held_twice_or_lost(steps: list[tuple[bool, int]]) -> None:
    pages = FreePages(3, 40)
    held: list[tuple[int, int]] = []
    for taking, number in steps:
        if taking:
            start = pages.take(number)
            if start is not None:
                held.append((start, number))
        elif held:
            pages.give(*held.pop(number % len(held)))
        taken = [page for start, count in held for page in range(start, start + count)]
        assert len(taken) == len(set(taken)) == 40 - pages.free
        assert all(3 <= page < 43 for page in taken)
    for start, count in held:
        pages.give(start, count)
    assert pages.take(40) == 3
