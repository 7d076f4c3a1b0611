"""The benchmark of decode steps on a tiny shape, and the arithmetic of its floor."""

import random

import pytest
import torch

from benchmarks.steps import decode
from benchmarks.support.base_shapes import base_of
from benchmarks.support.crowd import LORA, VERA
from benchmarks.support.roofline import Chip, Work, step_work
from tests.benchmarks.running import cells, run


def test_decode_reports_every_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, decode, "--shape tiny --rows 1 3 --resident 5 --steps 1 --rounds 1")
    lines = capsys.readouterr().out.splitlines()
    sides = [cells(line)[1:3] for line in lines if line.startswith("| 3 ")]
    assert [" ".join(side) for side in sides] == [
        "base ",
        *(f"vera r256 q, v {load}" for load in ("distinct", "one", "Zipf")),
        *(f"vera r256 all {load}" for load in ("distinct", "one", "Zipf")),
        *(f"lora r16 all {load}" for load in ("distinct", "one", "Zipf")),
        "asymmetric-lora r16 all distinct",
        "randlora r32 all distinct",
        "all methods distinct",
    ]
    assert sum(line.startswith("| 1 ") for line in lines) == 4 + 1  # and alone in memory


def test_loads_are_what_they_are_called() -> None:
    random.seed(0)
    distinct, one, zipf = (side.adapters for side in decode.sides_of(64, VERA, 2000))
    assert len(set(distinct)) == 64 and set(one) == {distinct[0]}
    assert 1 < len(set(zipf)) < 64 and set(zipf) <= set(distinct)


def test_the_floor_counts_weights_once_and_adapters_by_how_many() -> None:
    base = base_of("tiny", "cpu")
    one = step_work(base, 2, 20, 2, [(LORA, 0), (LORA, 0)])
    two = step_work(base, 2, 20, 2, [(LORA, 0), (LORA, 1)])
    none = step_work(base, 2, 20, 2, [])
    weights = sum(p.numel() for p in base.model.parameters() if p.ndim == 2)
    weights -= base.vocab_size * 64  # the embeddings, of which a step reads a few rows
    keys_and_values = 2 * 20 * 2 * 16 * 2
    assert none.bytes == 4 * (weights + keys_and_values)
    assert two.bytes - one.bytes == one.bytes - none.bytes == 4 * LORA.entries(base)
    assert two.operations == one.operations == none.operations + 2 * 2 * LORA.entries(base)
    attention = 4 * 20 * 64 * 2
    assert none.operations == 2 * 2 * weights + attention


@pytest.mark.parametrize(("work", "seconds"), [(Work(100, 1), 10.0), (Work(10, 800), 8.0)])
def test_the_floor_is_the_longer_of_moving_and_counting(work: Work, seconds: float) -> None:
    assert Chip(bandwidth=10, rate=100).seconds(work) == seconds


def test_what_a_step_reads_of_a_seeded_basis_counts_once() -> None:
    base = base_of("tiny", "cpu")
    vectors = VERA.entries(base) * base.dtype.itemsize
    none = step_work(base, 4, 40, 4, [])
    found = [step_work(base, 4, 40, 4, [(VERA, n) for n in range(count)]) for count in (1, 4)]
    assert found[1].bytes - found[0].bytes == 3 * vectors
    matrices = found[0].bytes - none.bytes - vectors
    assert matrices == base.dtype.itemsize * 2 * VERA.rank * 160
    assert base.dtype == torch.float32
