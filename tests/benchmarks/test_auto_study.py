"""What of the study of automatic options can be checked without a GPU."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.training import study_lines
from benchmarks.training.auto_study import BaseFiles, measure, scores
from benchmarks.training.study_grid import RATES, SEEDS, Cohort, Reading, cohorts
from benchmarks.training.study_lines import Lines, pack, unpack
from benchmarks.training.study_report import LOSS, CohortResult, RunResult, report, results_in
from server.adapters.memory.matrices import SharedBases
from server.bases.base_files import load_base
from server.bases.tokenizer import load_tokenizer
from tests.bases.test_default_prompt import ADDED, ANSWER, NONE, QUESTION
from tests.models import tiny_base
from tests.training.chats import byte_tokenizer
from tests.training.run.test_trainer import make_examples


def test_the_grid_begins_with_both_bases_and_names_nothing_twice() -> None:
    planned = list(cohorts({"small": False, "large": True}))
    assert len(set(planned)) == len(planned)
    assert {one.base for one in planned[:2]} == {"small", "large"}
    assert {one.method for one in planned} == set(RATES)
    assert {one.base for one in planned if one.opening} == {"large"}


def write_sources(data: Path) -> None:
    """A command for each intent, and a meaning."""
    (data / "snips").mkdir(parents=True)
    for intent in ("AddToPlaylist", "BookRestaurant", "GetWeather", "PlayMusic", "RateBook"):
        write_intent(data, intent, "Play ")
    write_intent(data, "SearchCreativeWork", "Find ")
    write_intent(data, "SearchScreeningEvent", "When is ")
    (data / "e2e").mkdir()
    for name in ("train.txt", "valid.txt"):
        (data / "e2e" / name).write_text("food : fish||They have fish .\n")


def write_intent(data: Path, intent: str, text: str) -> None:
    parts = [{"text": f"{text}{intent} by "}, {"text": "Coltrane", "entity": "artist"}]
    for name in ("train_{}_full.json", "validate_{}.json"):
        path = data / "snips" / name.format(intent)
        path.write_text(json.dumps({intent: [{"data": parts}]}))


def test_lines_are_packed_as_a_base_reads_them(tmp_path: Path) -> None:
    write_sources(tmp_path)
    pack(tmp_path, "porch", tmp_path / "lines.gz")
    lines = unpack(tmp_path / "lines.gz")
    assert {name: len(each.pool) for name, each in lines.items()} == {
        "intents": 7,
        "slots": 7,
        "e2e": 1,
        "pirate": 56,
        "butler": 56,
    }
    assert not lines["pirate"].fresh and len(lines["intents"].fresh) == 7
    tokenizer = load_tokenizer("porch")
    (example,) = lines["e2e"].pool
    answer = [t for t, counts in zip(example.tokens, example.counts, strict=True) if counts]
    assert tokenizer.decode(answer, skip_special=False) == "They have fish .<|im_end|>"
    assert lines["e2e"].opening == 0
    slots = {tokenizer.decode(example.tokens) for example in lines["slots"].pool}
    assert any(text.endswith("PlayMusic; artist: Coltrane") for text in slots)


def test_an_opening_is_what_a_template_writes_by_itself(tmp_path: Path) -> None:
    """Lines without it are the same tokens less those in front."""
    examples = make_examples(3)
    lines = Lines(examples, [], opening=2)
    for whole, cut in zip(examples, lines.without_opening().pool, strict=True):
        assert cut.tokens == whole.tokens[2:] and cut.counts == whole.counts[2:]


def test_an_opening_has_the_tokens_of_the_default_prompt() -> None:
    whole, chat = byte_tokenizer(ADDED), [QUESTION, ANSWER]
    cut = study_lines._opening(whole)
    assert cut > 0 and whole.chat(chat)[cut:] == whole.without_default_prompt().chat(chat)
    assert study_lines._opening(byte_tokenizer(NONE)) == 0


@pytest.mark.parametrize("method", RATES)
def test_runs_of_a_cohort_learn_side_by_side_and_apart(method: str) -> None:
    base = tiny_base("llama")
    examples = make_examples(30)
    lines = Lines(examples[:20], examples[20:], opening=0)
    cohort = Cohort("tiny", method, Reading("intents", 8, 2, 4))
    result = measure(base, SharedBases(base), lines, cohort)
    assert result.steps == 4 and len(result.runs) == len(SEEDS) * len(RATES[method])
    assert [len(run.curve) for run in result.runs] == [2] * len(result.runs)
    before = sum(score[LOSS] for score in result.untrained) / len(SEEDS)
    assert result.mean(result.best_rate(), LOSS) < before
    assert len({run.curve[-1][LOSS] for run in result.runs}) == len(result.runs)
    again = CohortResult.of(json.loads(json.dumps(asdict(result))))
    assert again == result and f"{result.best_rate():g}" in report([again])


def test_lines_that_choose_are_not_those_that_are_reported() -> None:
    base = tiny_base("llama")
    examples = make_examples(9)
    first, _, second, _ = scores(base, examples, 2048)
    changed = [examples[0], examples[2], *examples[2:]]
    assert scores(base, changed, 2048)[0] == first and scores(base, changed, 2048)[2] != second


def test_a_run_that_diverged_is_never_the_best() -> None:
    cohort = Cohort("tiny", "vera", Reading("intents", 8, 1, 4))
    low, high = RATES["vera"][:2]
    runs = [RunResult(rate, seed, [[1.0, 0.0, 1.0, 0.0]]) for rate in (high,) for seed in SEEDS]
    runs += [RunResult(low, seed, [[0.5, 0.0, 0.5, 0.0]][:seed]) for seed in SEEDS]
    runs += [RunResult(rate, seed, []) for rate in RATES["vera"][2:] for seed in SEEDS]
    result = CohortResult(cohort, 2, 10, 1.0, [[2.0, 0.0, 2.0, 0.0]] * len(SEEDS), runs)
    assert result.mean(low, LOSS) == math.inf and result.best_rate() == high
    assert "**1.00, 0%**" in report([result])


def test_results_are_read_back_from_files_that_may_not_exist(tmp_path: Path) -> None:
    assert results_in([tmp_path / "none"]) == []
    assert BaseFiles.read("smol=/models/x:lines.gz") == (
        "smol",
        BaseFiles("/models/x", Path("lines.gz")),
    )


def test_a_base_reads_its_packed_lines(tmp_path: Path) -> None:
    write_sources(tmp_path)
    pack(tmp_path, "porch", tmp_path / "lines.gz")
    base = load_base("porch", device="cpu")
    loss, *_ = scores(base, unpack(tmp_path / "lines.gz")["pirate"].pool[:4], 2048)
    assert 5 < loss < 20
