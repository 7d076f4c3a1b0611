"""The measurement's own arithmetic: its texts, batches and grid. Trains nothing."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks.e2e.e2e_data import IGNORED, Batches, Encoded, Splits, natural, pairs, references
from benchmarks.e2e.e2e_grid import LORA, RATES, SEEDS, Arm, all_runs, main_arms, matched_arms
from benchmarks.e2e.runs import Outcome, Run, outcomes
from server.training.run.examples import Example


def outcome(run: Run, loss: float) -> Outcome:
    return Outcome(run, loss, ((1, loss),), loss, trained=10, bytes=40, steps=1, seconds=0.5)


def loss_by_rate(run: Run) -> float:
    """A bowl about a rate of 0.01."""
    return 1 + abs(math.log10(run.rate) + 2)


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ("It is family - friendly .", "It is family-friendly."),
        ("Food ( £ 20 - 25 ) , near it", "Food (£20-25), near it"),
        ("It 's cheap , isn n't it ?", "It's cheap, isnn't it?"),
    ],
)
def test_split_words_are_joined_as_people_write(words: str, written: str) -> None:
    assert natural(words) == written


def test_references_are_gathered_by_meaning(tmp_path: Path) -> None:
    meaning = "name : The Mill | Type : pub"
    lines = [(meaning, "A pub ."), ("name : Zizzi", "Zizzi ."), (meaning, "The Mill , a pub .")]
    (tmp_path / "test.txt").write_text("".join(f"{m}||{t} \n" for m, t in lines))
    rows = "mr,ref\na,A pub!\nb,Zizzi!\na,The Mill!\n"
    (tmp_path / "testset_w_refs.csv").write_text(rows)
    assert references(tmp_path) == {
        "name: The Mill | Type: pub\n": ["A pub!", "The Mill!"],
        "name: Zizzi\n": ["Zizzi!"],
    }
    assert pairs(tmp_path / "test.txt")[0] == ("name: The Mill | Type: pub\n", "A pub.")


def encoded() -> Encoded:
    rows = [[1, 2, 3, 4, 5], [6, 7, 8], list(range(10, 30))]
    return Encoded.of([r for row in rows if (r := Example.of(row, [(2, len(row))]))])


def test_a_batch_counts_each_token_of_the_texts_once(tmp_path: Path) -> None:
    splits = Splits(encoded(), encoded(), encoded())
    splits.save(tmp_path / "tokens.npz")
    rows = Splits.load(tmp_path / "tokens.npz").train
    batch = Batches(rows, torch.device("cpu")).batch([0, 2])
    counted = batch.targets != IGNORED
    assert batch.targets[counted].tolist() == [3, 4, 5, *range(12, 30)]
    assert int(batch.count) == batch.num_targets == 21
    assert batch.ids.shape == (2, 24)  # 19 read tokens, rounded up to eights
    before = batch.ids.flatten()[batch.places[counted]]
    assert before.tolist() == [2, 3, 4, *range(11, 29)]


def test_every_batch_of_one_length_has_one_shape() -> None:
    """Else each step would be recorded anew."""
    batches = Batches(encoded(), torch.device("cpu"))
    shapes = {batches.batch([row, row]).targets.shape for row in (0, 1)}
    assert len(shapes) == 1


def test_a_sweep_goes_on_until_the_best_has_worse_on_both_sides() -> None:
    arm = Arm("x", Run("ours", "lora", 4, 0.0), (1e-4, 3e-4))
    done: dict[Run, Outcome] = {}
    while left := arm.sweep(done):
        done.update({run: outcome(run, loss_by_rate(run)) for run in left})
    best = arm.best(done)
    assert best is not None and best.rate == 0.01
    assert [RATES[place] for place in sorted(arm.tried(done))] == [
        1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2,
    ]  # fmt: skip


def test_the_grid_comes_to_an_end_with_three_seeds_of_every_arm() -> None:
    done: dict[Run, Outcome] = {}
    while left := [run for run in all_runs(done) if run not in done]:
        done.update({run: outcome(run, loss_by_rate(run)) for run in left})
    arms = [*main_arms(done), *matched_arms(done)]
    bests = [best for arm in arms if (best := arm.best(done))]
    assert len(bests) == len(arms) == 21
    assert all(best.at(seed=seed) in done for best in bests for seed in SEEDS)
    assert LORA.best(done) is not None


def test_outcomes_come_back_from_their_lines(tmp_path: Path) -> None:
    run = Run("ours", "vera", 8, 0.1, options=(("basis", "per-layer"), ("alpha", 2.0)))
    file = tmp_path / "results.jsonl"
    file.write_text(f"{outcome(run, 1.5).line()}\n" + '{"run": {"si')  # cut short
    assert outcomes([file]) == {run: outcome(run, 1.5)}
