"""What of the study of automatic options can be checked without running it."""

import json
from pathlib import Path

import torch

from benchmarks.training import auto_study
from benchmarks.training.auto_study import EPOCHS, Run, measure, records_of, report, runs
from server.adapters.memory.matrices import SharedBases
from server.training.run.defaults import epochs_for
from tests.models import tiny_base
from tests.training.run.test_trainer import make_examples


def test_every_file_is_read_as_the_rule_says_and_otherwise() -> None:
    planned = list(runs())
    assert len(set(planned)) == len(planned)
    assert all(epochs_for(lines) in each and len(each) == 3 for lines, each in EPOCHS.items())
    assert planned[0].lines * planned[0].epochs == min(n * e[0] for n, e in EPOCHS.items())


def test_lines_are_read_as_questions_and_answers(tmp_path: Path) -> None:
    (tmp_path / "snips").mkdir()
    data = [{"text": "Play "}, {"text": "Coltrane", "entity": "artist"}]
    content = json.dumps({"PlayMusic": [{"data": data}]})
    (tmp_path / "snips" / "train_PlayMusic_full.json").write_text(content)
    (record,) = records_of(tmp_path, "snips")
    assert record["messages"] == [
        {"role": "user", "content": "Play Coltrane"},
        {"role": "assistant", "content": "PlayMusic; artist: Coltrane"},
    ]


def test_a_run_is_measured_on_lines_that_it_has_not_seen(tmp_path: Path) -> None:
    base = tiny_base("llama")
    examples = make_examples(60)
    outcome = measure(base, SharedBases(base), examples, Run("snips", 10, 2))
    again = measure(base, SharedBases(base), examples[:50] + examples[:10], Run("snips", 10, 2))
    assert torch.tensor(outcome.last).isfinite() and outcome.last < outcome.base
    assert outcome.last == again.last, "only the first forty and the ten after them matter"
    path = tmp_path / "runs.jsonl"
    line = {"run": vars(Run("snips", 10, 15)), "outcome": vars(outcome)}
    path.write_text(json.dumps(line) + "\n")
    assert f"**15: {outcome.last:.2f} / {outcome.best:.2f}**" in report(path)
    assert auto_study._read(tmp_path / "none") == []
