"""What an engine tells of itself is what others read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.pulse import Pulse, quantile

SECONDS = st.floats(1e-4, 6)


@given(gaps=st.lists(SECONDS, min_size=1, max_size=40), share=st.sampled_from([0.5, 0.95, 1.0]))
def test_a_quantile_is_one_of_the_gaps_to_two_per_cent(gaps: list[float], share: float) -> None:
    pulse = Pulse()
    pulse.step({0.5: 7})
    before = pulse.read()
    for gap in gaps:
        pulse.step({gap: 1})
    found = quantile(pulse.read().since(before), share)
    exact = next(gap for n, gap in enumerate(sorted(gaps), 1) if n >= share * len(gaps))
    assert found == pytest.approx(exact, rel=0.02)


def test_between_two_readings_without_tokens_there_is_no_quantile() -> None:
    pulse = Pulse()
    pulse.step({0.5: 7})
    before = pulse.read()
    pulse.step({})
    assert quantile(pulse.read().since(before), 0.95) is None
    assert pulse.read().steps == before.steps + 1


@pytest.mark.parametrize(("seconds", "told"), [(0.0, 1e-4), (1e-9, 1e-4), (100.0, 6.5)])
def test_what_is_out_of_range_counts_at_its_end(seconds: float, told: float) -> None:
    pulse = Pulse()
    nothing = pulse.read()
    pulse.step({seconds: 1})
    assert quantile(pulse.read().since(nothing), 1.0) == pytest.approx(told, rel=0.03)
