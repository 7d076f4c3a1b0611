"""Whatever breaks, every accepted job ends once: a few rounds of the drill, of all that may break.

More of them, and others: `python -m tests.faults.drill --minutes 10 --seed $RANDOM`.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.faults.scenarios import SCENARIOS
from tests.program import command

ROOT = Path(__file__).parents[2]
SEED = os.environ.get("VERANDAH_FAULTS_SEED", "0")
ROUNDS = int(os.environ.get("VERANDAH_FAULTS_ROUNDS", "1"))


@pytest.mark.slow
@pytest.mark.timeout(240 * (ROUNDS + 1))
@pytest.mark.parametrize("first", [0, 1])
def test_nothing_is_lost(first: int, tmp_path: Path) -> None:
    """Two programs, each with every other scenario, since starting one takes as long as a round."""
    scenarios = list(SCENARIOS)[first::2]
    done = subprocess.run(
        command("tests.faults.drill", *scenarios, "--seed", SEED, "--rounds", str(ROUNDS)),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=230 * (ROUNDS + 1),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    played = re.findall(r"^(\w+) \d+: \{", done.stdout, re.MULTILINE)
    assert sorted(played) == sorted(scenarios * ROUNDS), done.stdout
