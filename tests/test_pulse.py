"""What one process tells of an engine is what others read."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.pulse import Pulse, PulseReader, Reading

ROOT = Path(__file__).parents[1]
SECONDS = st.floats(1e-4, 6)


@pytest.fixture
def pulse(tmp_path: Path) -> Pulse:
    return Pulse(tmp_path / "pulse")


def test_another_process_reads_it(pulse: Pulse) -> None:
    pulse.running(3)
    pulse.step({0.002: 2, 0.004: 1})
    program = (
        "import sys, pathlib; from server.pulse import PulseReader\n"
        "reading = PulseReader(pathlib.Path(sys.argv[1])).read()\n"
        "print(reading.running, reading.steps, sum(reading.gaps))"
    )
    command = [sys.executable, "-c", program, str(pulse.path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["3", "1", "3"]


@given(gaps=st.lists(SECONDS, min_size=1, max_size=40), share=st.sampled_from([0.5, 0.95, 1.0]))
def test_a_quantile_is_one_of_the_gaps_to_two_per_cent(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[float], share: float
) -> None:
    pulse = Pulse(tmp_path_factory.mktemp("pulse") / "pulse")
    reader = PulseReader(pulse.path)
    pulse.step({0.5: 7})
    before = reader.read()
    for gap in gaps:
        pulse.step({gap: 1})
    found = reader.read().quantile(before, share)
    exact = next(gap for n, gap in enumerate(sorted(gaps), 1) if n >= share * len(gaps))
    assert found == pytest.approx(exact, rel=0.02)


def test_between_two_readings_without_tokens_there_is_no_quantile(pulse: Pulse) -> None:
    reader = PulseReader(pulse.path)
    pulse.step({0.5: 7})
    before = reader.read()
    pulse.step({})
    assert reader.read().quantile(before, 0.95) is None
    assert reader.read().steps == before.steps + 1


@pytest.mark.parametrize(("seconds", "told"), [(0.0, 1e-4), (1e-9, 1e-4), (100.0, 6.5)])
def test_what_is_out_of_range_counts_at_its_end(pulse: Pulse, seconds: float, told: float) -> None:
    nothing = Reading(0, 0, [0] * len(PulseReader(pulse.path).read().gaps))
    pulse.step({seconds: 1})
    found = PulseReader(pulse.path).read().quantile(nothing, 1.0)
    assert found == pytest.approx(told, rel=0.03)


def test_a_new_engine_replaces_the_file_and_a_closed_one_takes_it_away(pulse: Pulse) -> None:
    old = PulseReader(pulse.path)
    pulse.running(2)
    successor = Pulse(pulse.path)
    successor.running(5)
    assert (old.running, PulseReader(pulse.path).running) == (2, 5)
    assert pulse.path.stat().st_mode & 0o077 == 0
    successor.close()
    with pytest.raises(FileNotFoundError):
        PulseReader(pulse.path)
