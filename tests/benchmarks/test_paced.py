"""The stand-in for a device: it takes its time, and every row's cost is counted."""

from collections.abc import Callable

import pytest

from benchmarks.host.paced import Shape, alone, apart


@pytest.mark.parametrize("run", [alone, pytest.param(apart, marks=pytest.mark.slow)])
def test_steps_take_as_long_as_the_device(run: Callable[[Shape], dict[str, float]]) -> None:
    costs = run(Shape(8, 4, 6, step_ms=5.0, operators=2, steps=40))
    assert costs["ms"] >= 4.5
    assert 0 < costs["rows"] <= 8
    assert costs["rate"] <= 8 / 4.5e-3
    assert costs["loop"] > 0
