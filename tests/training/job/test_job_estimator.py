"""What is said of a job before it runs, against what the run then is."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from adapters_store.manifest import AdapterRef
from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.errors import InvalidDataset, InvalidRequest, LineProblem
from server.jobs.files.dataset_warnings import dataset_warnings
from server.jobs.files.datasets import Dataset, validate
from server.jobs.queue.train_options import TrainOptions
from server.training.job import job_estimator as estimating
from server.training.job.job_estimator import JobEstimator
from server.training.run.examples import LineEncoder
from tests.training.chats import UNMARKED, byte_tokenizer
from tests.training.families import FAMILIES, byte_level
from tests.training.job.test_worker import submit, work_off
from tests.training.workplace import OWNER, Workplace, lines, load_tiny


@pytest.fixture(scope="module")
def loaded() -> tuple[BaseModel, ChatTokenizer]:
    return load_tiny()


@pytest.fixture
def estimator(loaded: tuple[BaseModel, ChatTokenizer]) -> JobEstimator:
    return JobEstimator(*loaded, max_rank=64, speed=lambda: None)


def dataset(records: Sequence[object]) -> Dataset:
    return validate(io.BytesIO(b"\n".join(json.dumps(r).encode() for r in records)), min_examples=1)


def said(question: str, answer: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def chat(question: str, answer: str) -> dict[str, object]:
    return {"messages": said(question, answer)}


@pytest.mark.parametrize("options", [TrainOptions(rank=8, n_epochs=2), TrainOptions("lora")])
def test_the_estimate_is_what_becomes_of_the_job(
    tmp_path: Path, loaded: tuple[BaseModel, ChatTokenizer], options: TrainOptions
) -> None:
    place = Workplace.at(tmp_path)
    made = submit(place, count=24, options=options)
    train = validate(io.BytesIO(lines(24)))
    told = JobEstimator(*loaded, max_rank=64, speed=lambda: None).estimate(train, None, options)
    job = work_off(place, made)
    assert job.trained_tokens is not None
    stored = place.store.open(place.store.resolve(OWNER, "pirate"))
    assert told.trained_tokens == pytest.approx(job.trained_tokens, rel=0.1)
    assert told.steps == job.step
    assert told.adapter_bytes == pytest.approx(stored.size_bytes, rel=0.25)
    assert (told.examples, told.measured) == (24, False)
    start = ("pirate@1", place.store.open(AdapterRef(OWNER, "pirate", 1)).manifest)
    speedy = JobEstimator(*loaded, max_rank=64, speed=lambda: 2.0)
    again = speedy.estimate(train, None, options, start)
    assert again.parameters == told.parameters
    assert (again.measured, again.seconds) == (True, -(-told.trained_tokens // 2))
    with pytest.raises(InvalidRequest, match="contradict pirate@1"):
        speedy.estimate(train, None, TrainOptions(targets=("q_proj",)), start)


def test_every_line_that_is_too_long_is_named(estimator: JobEstimator) -> None:
    train = dataset([chat("Hi", "x" * (300 if i % 3 == 0 else 3)) for i in range(12)])
    with pytest.raises(InvalidDataset) as caught:
        estimator.estimate(train, None, TrainOptions())
    assert [problem.line for problem in caught.value.problems] == [1, 4, 7, 10]
    assert estimator.problems(train, "training_file") == caught.value.problems
    short = dataset([chat("Hi", "x")] * 10)
    with pytest.raises(InvalidDataset) as caught:
        estimator.estimate(short, train, TrainOptions())
    assert caught.value.param == "validation_file"
    with pytest.raises(InvalidRequest, match="early_stopping"):
        estimator.estimate(short, None, TrainOptions(early_stopping=2, validation_split=0.0))


def test_of_a_large_file_some_lines_and_the_long_ones_are_read(
    estimator: JobEstimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "_TOKENIZED_LINES", 10)
    records = [chat("Hi", "x" * 20) for _ in range(100)]
    said = estimator.estimate(dataset(records), None, TrainOptions())
    assert (said.examples, said.counted) == (100, 10)
    whole = 100 * said.longest
    assert said.tokens == whole
    records[55] = chat("Hi", "x" * 300)  # not among every tenth
    with pytest.raises(InvalidDataset) as caught:
        estimator.estimate(dataset(records), None, TrainOptions())
    assert [problem.line for problem in caught.value.problems] == [56]


@pytest.fixture
def grown(loaded: tuple[BaseModel, ChatTokenizer]) -> JobEstimator:
    """Of a tokenizer with tokens that the base has no embedding for."""
    inner = byte_tokenizer()._tokenizer
    inner.add_tokens([f"<new {number}>" for number in range(60)])
    tokenizer = ChatTokenizer(inner)
    assert len(tokenizer) > loaded[0].vocab_size == 300
    return JobEstimator(loaded[0], tokenizer, max_rank=64, speed=lambda: None)


@pytest.mark.parametrize(
    "record",
    [
        chat("Hi <new 50>", "x"),
        chat("Hi", "<new 50>"),
        {"messages": [{"role": "system", "content": "<new 50>"}, *chat("a", "b")["messages"]]},  # type: ignore[misc]
    ],
)
def test_lines_with_tokens_that_the_base_lacks_are_named(
    grown: JobEstimator, record: dict[str, object]
) -> None:
    usual = [chat("Hi <new 3>", "x")] * 10
    assert grown.estimate(dataset(usual), None, TrainOptions()).examples == 10
    odd = dataset([*usual, record, *usual, record])
    with pytest.raises(InvalidDataset) as caught:
        grown.estimate(odd, None, TrainOptions())
    assert [problem.line for problem in caught.value.problems] == [11, 22]
    assert "has token 309 ('<new 50>'), and this model's token ids are 0..299: leave that" in str(
        caught.value
    )
    named = [replace(problem, param="validation_file") for problem in caught.value.problems]
    assert list(grown.problems(odd, "validation_file")) == named
    with pytest.raises(InvalidDataset) as caught:
        grown.estimate(dataset(usual), odd, TrainOptions())
    assert caught.value.param == "validation_file"


def test_prompts_and_completions_with_such_tokens_are_named(grown: JobEstimator) -> None:
    pairs = [("a", "b"), ("<new 50>", "b"), ("a", "<new 41>"), ("", "<new 40>"), ("<new 40>", "b")]
    odd = dataset([{"prompt": prompt, "completion": completion} for prompt, completion in pairs])
    assert [problem.line for problem in grown.problems(odd, "training_file")] == [2, 3]


def test_in_a_large_file_too_every_line_with_such_a_token_is_named(
    grown: JobEstimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "_TOKENIZED_LINES", 10)
    records = [chat("Hi", "x" * 20) for _ in range(100)]
    records[55] = chat("Hi", 'a "<new 50>"')
    records[57] = chat("Hi", "<new 5>")
    with pytest.raises(InvalidDataset) as caught:
        grown.estimate(dataset(records), None, TrainOptions())
    assert [problem.line for problem in caught.value.problems] == [56]


def test_an_end_that_training_adds_is_told(loaded: tuple[BaseModel, ChatTokenizer]) -> None:
    tokenizer = byte_level(FAMILIES["headings without an end"])
    estimator = JobEstimator(loaded[0], tokenizer, max_rank=64, speed=lambda: None)
    chats = dataset([chat(f"q{i}", f"a{i}") for i in range(60)])
    (warning,) = estimator.estimate(chats, None, TrainOptions()).warnings
    assert "training adds '</s>' behind each answer" in warning
    texts = dataset([{"prompt": "", "completion": f"a{i}"} for i in range(60)])
    assert estimator.estimate(texts, None, TrainOptions()).warnings == ()


def test_one_line_of_each_kind_of_chat_is_tried_against_the_template(
    loaded: tuple[BaseModel, ChatTokenizer],
) -> None:
    base, _ = loaded
    template = UNMARKED.replace(
        "{%- for m in messages -%}",
        "{%- for m in messages -%}{%- if m.role == 'system' and not loop.first -%}"
        "{{- raise_exception('System role not supported there') -}}{%- endif -%}",
    )
    strict = JobEstimator(base, byte_tokenizer(template), 64, lambda: None)
    usual = [chat(f"q{i}", f"a{i}") for i in range(1500)]
    late = {"messages": [*said("q", "a"), {"role": "system", "content": "s"}, *said("", "b")[1:]]}
    records = dataset([*usual[:1201], late, *usual[1201:]])
    reason = (
        "the chat template of bytes refuses these messages: System role not supported there. "
        "Change them as it asks, or use a base model with another template"
    )
    expected = LineProblem(1202, reason, "validation_file")
    assert list(strict.problems(records, "validation_file")) == [expected]
    strict.estimate(dataset(usual), None, TrainOptions())
    with pytest.raises(InvalidDataset, match="line 1202: the chat template of bytes refuses"):
        strict.estimate(records, None, TrainOptions())


@pytest.mark.parametrize("shown", [True, False])
def test_reasoning_is_learnt_where_the_template_shows_it(
    loaded: tuple[BaseModel, ChatTokenizer], shown: bool
) -> None:
    base, _ = loaded
    thought = "{{- '<think>' + (m.reasoning_content or '') + '</think>' -}}" if shown else ""
    template = UNMARKED.replace(
        "{%- if m['role'] == 'assistant' -%}", "{%- if m['role'] == 'assistant' -%}" + thought
    )
    estimator = JobEstimator(base, byte_tokenizer(template), 64, lambda: None)
    user, answer = said("q", "a")
    record = {"messages": [user, {**answer, "reasoning_content": "Hm."}]}
    warnings = estimator.estimate(dataset([record] * 50), None, TrainOptions()).warnings
    assert any("reasoning_content" in warning for warning in warnings) != shown
    (example,) = LineEncoder.of(base, estimator.tokenizer).examples(record)
    text = estimator.tokenizer.decode(example.tokens, skip_special=False)
    assert ("<think>Hm.</think>a<|im_end|>" in text) == shown


def test_what_looks_odd_is_named_with_its_lines() -> None:
    usual = [chat(f"q{i}", f"a{i}") for i in range(50)]
    assert dataset_warnings(dataset(usual)) == []
    odd = [*usual, usual[3], chat("q5", "other"), chat("q", "caf\ufffd"), chat("r", " a\n")]
    odd += [{"messages": [*chat("s", "t")["messages"]]}] * 3  # type: ignore[misc]
    assert dataset_warnings(dataset(odd), dataset([usual[0], chat("new", "new")])) == [
        "the training file repeats 3 lines: line 51, 56, 57",
        "the training file answers the same question differently in 1 line: line 52",
        "the training file holds U+FFFD, the sign of a wrong decoding, in 1 line: line 53",
        "the training file has answers that begin or end with blanks, which the adapter learns, in "
        "1 line: line 54",
        "the validation loss will say little, because the training file has 1 line of the "
        "validation file too: line 1",
    ]
    user, answer = said("q", "a")
    thought = {**answer, "reasoning_content": "Hm."}
    roles = [[user, user, answer], [answer, user, answer], [{**user, "weight": 1}, answer]]
    roles += [[user, answer, answer, answer], [user, thought]]
    shapes = dataset([*usual, *({"messages": messages} for messages in roles)])
    told = [
        "the training file has two messages in a row of one role, the user's or the assistant's, "
        "in 2 lines: line 51, 54",
        "the training file has chats that begin with the assistant, whose first message is read "
        "and not learnt, in 1 line: line 52",
        "the training file has a weight on messages that are not the assistant's, where it changes "
        "nothing, in 1 line: line 53",
    ]
    left_out = "reasoning_content, which the base's chat template leaves out, in 1 line: line 55"
    assert dataset_warnings(shapes) == told
    assert dataset_warnings(shapes, reasoning=False) == [
        *told,
        f"the training file has {left_out}",
    ]
    few = dataset([{"prompt": "a", "completion": " b"}] * 30)
    assert dataset_warnings(few) == [
        "the training file has 30 examples; 50 to 100 usually teach more",
        "the training file repeats 29 lines: line "
        + ", ".join(str(line) for line in range(2, 22))
        + ", ...",
    ]
