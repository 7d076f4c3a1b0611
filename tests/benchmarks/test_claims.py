"""The measurement's own arithmetic: its texts, batches, grid and tables; and one run of it all."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.claims import grid
from benchmarks.claims.data.e2e_texts import natural, pairs, references
from benchmarks.claims.data.rows import IGNORED, Batches, Encoded
from benchmarks.claims.data.task_texts import READERS
from benchmarks.claims.data.tasks import Task, deciding, load, save
from benchmarks.claims.grid import RATES, SEEDS, Arm, all_runs, arms_of
from benchmarks.claims.learning.training import choice_scores
from benchmarks.claims.runs import Outcome, Run, Side, outcomes
from benchmarks.claims.shown.plots import by_bytes, draw
from benchmarks.claims.shown.tables import Line, all_tables
from benchmarks.claims.work import work
from server.bases.tokenizer import load_tokenizer
from server.training.run.examples import Example


def outcome(run: Run, loss: float) -> Outcome:
    return Outcome(run, loss, {"accuracy": 50.0}, loss, trained=10, bytes=40, seconds=0.5)


def loss_by_rate(run: Run) -> float:
    """A bowl about a rate of 0.01."""
    return 1 + abs(math.log10(run.rate or 1) + 2)


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


def test_commonsense_offers_what_its_prompts_name(tmp_path: Path) -> None:
    prompt = "Is it so?\n\nAnswer format: {}"
    for group, answers in {"boolq": ["true", "false"], "ARC-Easy": ["answer1", "answer2"]}.items():
        for part in ("train", "test"):
            rows = [
                {"instruction": prompt.format("/".join(answers)), "answer": answer}
                for answer in [*answers, "none of them"] * 100
            ]
            file = tmp_path / "llm_adapters" / group / f"{part}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(rows))
    for group in ("piqa", "social_i_qa", "winogrande", "ARC-Challenge", "openbookqa"):
        folder = tmp_path / "llm_adapters" / group
        folder.mkdir()
        for part in ("train", "test"):
            (folder / f"{part}.json").write_text("[]")
    texts = READERS["commonsense"](tmp_path)
    assert {(line.group, line.choices) for line in texts.test} == {
        ("boolq", (" true", " false")),
        ("ARC-Easy", (" answer1", " answer2")),
    }
    assert all(line.answer in line.choices for line in (*texts.train, *texts.tune))
    assert len(texts.train) == 2 * 75 and len(texts.tune) == 2 * 125


def encoded(**choices: list[int]) -> Encoded:
    rows = [[1, 2, 3, 4, 5], [6, 7, 8], list(range(10, 30))]
    examples = [r for row in rows if (r := Example.of(row, [(2, len(row))]))]
    if not choices:
        return Encoded.of(examples)
    offered = [[3, 8], [8, 3], [12, 3, 9]]
    return Encoded.of(examples, [2, 2, 2], offered, choices["gold"], choices["groups"])


def test_a_batch_counts_each_token_of_the_answers_once(tmp_path: Path) -> None:
    rows = encoded(gold=[0, 0, 0], groups=[0, 0, 1])
    save([Task("sst2", rows, rows, rows)], tmp_path / "tokens.npz")
    read = load(tmp_path / "tokens.npz", ["sst2"])["sst2"].train
    batch = Batches(read, torch.device("cpu")).batch([0, 2])
    counted = batch.targets != IGNORED
    assert batch.targets[counted].tolist() == [3, 4, 5, *range(12, 30)]
    assert int(batch.count) == batch.num_targets == 21
    assert batch.ids.shape == (2, 32)  # 19 read tokens, rounded up to sixteens
    before = batch.ids.flatten()[batch.places[counted]]
    assert before.tolist() == [2, 3, 4, *range(11, 29)]
    assert read.choices.tolist() == [[3, 8, -1], [8, 3, -1], [12, 3, 9]]
    assert read.end == 5 and read.prompt(1) == [6, 7]


def test_a_row_behind_many_tokens_is_cut_where_it_lies() -> None:
    """The prompts' lengths are stored in 16 bits, in which the place of such a row has no room."""
    first = Example.of([1] * 40_000, [(2, 40_000)])
    last = Example.of([*range(10, 30)], [(4, 20)])
    assert first is not None and last is not None
    rows = Encoded.of([first, last], [2, 4], [[1, 2], [14, 3]], [0, 0])
    for split in (rows, Encoded.of([first, last, last]).first(2)):
        batch = Batches(split, torch.device("cpu")).batch([1])
        assert batch.ids[0, :19].tolist() == [*range(10, 29)]
        assert batch.targets[batch.targets != IGNORED].tolist() == [*range(14, 30)]
        assert batch.num_targets == 16
        assert split.prompt(1) == [10, 11, 12, 13]


def test_every_full_batch_of_one_length_has_one_shape() -> None:
    """Else each step would be recorded anew."""
    batches = Batches(encoded(), torch.device("cpu"))
    shapes = {batches.batch([row, row]).targets.shape for row in (0, 1)}
    assert len(shapes) == 1
    assert [len(batch) for batch in batches.epoch(2, seed=0, epoch=0)] == [2]


def test_choices_that_one_token_cannot_tell_apart_are_refused() -> None:
    tokenizer = load_tokenizer("porch")
    place, tokens = deciding((" no", " yes"), tokenizer)
    assert place == 0 and len(set(tokens)) == 2
    with pytest.raises(ValueError, match="tells the answers"):
        deciding((" yes", " yes"), tokenizer)


def test_scores_of_choices() -> None:
    rows = encoded(gold=[0, 1, 0], groups=[0, 0, 1])
    assert choice_scores(rows, np.array([0, 0, 0]))["accuracy"] == pytest.approx(75)
    row = Example((1, 2), (False, True))
    pair = Encoded.of([row] * 4, [1] * 4, [[2, 3]] * 4, [0, 0, 1, 1])
    scores = choice_scores(pair, np.array([0, 1, 1, 1]))
    assert scores == pytest.approx({"accuracy": 75, "F1": 80, "MCC": 100 / math.sqrt(3)})


def test_a_sweep_goes_on_until_the_best_has_worse_on_both_sides() -> None:
    arm = Arm("x", Run("sst2", "ours", "lora", 4, 0.0), (1e-4, 3e-4))
    done: dict[Run, Outcome] = {}
    while left := arm.sweep(done):
        done.update({run: outcome(run, loss_by_rate(run)) for run in left})
    best = arm.best(done)
    assert best is not None and best.rate == 0.01
    assert [RATES[place] for place in sorted(arm.tried(done))] == [
        1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole_grid() -> dict[Run, Outcome]:
    done: dict[Run, Outcome] = {}
    while left := [run for run in all_runs(done) if run not in done]:
        done.update({run: outcome(run, loss_by_rate(run) + run.seed / 100) for run in left})
    return done


def test_the_grid_comes_to_an_end_with_three_seeds_of_every_arm(
    whole_grid: dict[Run, Outcome],
) -> None:
    arms = [arm for task in grid.TASKS for arm in arms_of(task, whole_grid)]
    bests = [best for arm in arms if (best := arm.best(whole_grid))]
    assert len(bests) == len(arms) == 3 * 14 + 4 * 5 + 2 * 5
    assert all(best.at(seed=seed) in whole_grid for best in bests for seed in SEEDS)
    assert sum(run.side == "peft" for run in whole_grid) == 3 * 3 * 3


def test_the_grid_begins_with_the_base_and_the_main_methods() -> None:
    first = all_runs({})[: len(grid.TASKS) + 1]
    assert [run.side for run in first] == ["base"] * len(grid.TASKS) + ["full"]


def test_the_tables_name_every_method_and_peft(whole_grid: dict[Run, Outcome]) -> None:
    page = "\n\n".join(all_tables(whole_grid, {}, []))
    for arm in (*grid.MAIN, *grid.VARIANTS, grid.SPARSEST):
        assert f"| {arm.name} " in page
    rows = page.partition("### PEFT")[2].partition("###")[0].count("\n| sst2")
    assert rows == 3


def test_a_table_is_made_of_any_part_of_the_grid() -> None:
    run = grid.base_run("sst2")
    assert "| base " in "".join(all_tables({run: outcome(run, 1.0)}, {}, []))
    assert list(all_tables({}, {}, []))


def test_a_plot_is_drawn_of_any_part_of_the_grid(
    whole_grid: dict[Run, Outcome], tmp_path: Path
) -> None:
    assert draw(whole_grid, {}, tmp_path).stat().st_size > 20_000
    assert draw({}, {}, tmp_path).exists()


def test_a_seed_that_diverged_does_not_stretch_the_axis() -> None:
    run = Run("e2e", "ours", "lora", 8, 0.01)
    scores = [{"BLEU": score} for score in (63.5, 65.5, 0.0)]
    figure, axes = plt.subplots()
    by_bytes(axes, "e2e", [Line("LoRA", run, 10, 40, [1.1, 1.1, 5.6], scores)])
    assert 55 < axes.get_ylim()[0] < 63.5
    assert [text.get_text().strip() for text in axes.texts] == ["0.0"]
    assert sorted(mark for line in axes.lines for mark in line.get_ydata())[1:] == [63.5, 65.5]
    plt.close(figure)


def test_outcomes_come_back_from_their_lines(tmp_path: Path) -> None:
    run = Run("e2e", "ours", "vera", 8, 0.1, options=(("basis", "per-layer"), ("alpha", 2.0)))
    file = tmp_path / "results.jsonl"
    file.write_text(f"{outcome(run, 1.5).line()}\n" + '{"run": {"si')  # cut short
    assert outcomes([file]) == {run: outcome(run, 1.5)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of 40 tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


SMALL = [
    ("base", "base", 0, 0.0, ()),
    ("full", "full", 0, 0.002, ()),
    ("ours", "lora", 2, 0.02, ()),
    ("ours", "vera", 8, 0.02, (("trained", "b"),)),
    ("ours", "randlora", 4, 0.001, (("sparsity", 3.0),)),
    ("peft", "vera", 8, 0.02, ()),
]


@pytest.mark.filterwarnings("ignore")  # PEFT's
@pytest.mark.parametrize(("side", "method", "rank", "rate", "options"), SMALL)
def test_every_kind_of_learner_is_trained_and_scored(
    tiny: str,
    side: Side,
    method: str,
    rank: int,
    rate: float,
    options: tuple[tuple[str, str | float], ...],
) -> None:
    rows = encoded(gold=[0, 0, 0], groups=[0, 0, 0])
    there = {"sst2": Task("sst2", rows, rows, rows)}
    steps = 0 if side == "base" else 8
    run = Run("sst2", side, method, rank, rate, options=options, steps=steps, batch=2)
    found = work(tiny, there, "cpu", run)
    unlearnt = work(tiny, there, "cpu", grid.base_run("sst2")).tune_loss
    assert (found.tune_loss < unlearnt) == (side != "base")
    assert (found.trained == found.bytes == 0) == (side == "base")
    assert set(found.scores) >= {"accuracy"} and not found.answers


def test_a_written_task_is_answered(tiny: str) -> None:
    rows = encoded()
    run = Run("e2e", "ours", "lora", 2, 0.02, steps=2, batch=2)
    found = work(tiny, {"e2e": Task("e2e", rows, rows, rows)}, "cpu", run)
    assert len(found.answers) == 3 and max(map(len, found.answers)) <= 80
