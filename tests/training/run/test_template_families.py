"""What is learnt with templates of every family: the answer and its end, behind what is asked."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from server.adapters.learning.trainable import TrainableAdapter
from server.bases.chats.chat_template import Message
from server.bases.tokenizer import ChatTokenizer
from server.errors import InvalidRequest
from server.training.run.defaults import TrainPlan
from server.training.run.examples import Example, LineEncoder, Span
from server.training.run.greedy_answers import GreedyRequest, answer
from server.training.run.run_steps import run
from server.training.run.trainer import Trainer
from tests.models import tiny_base
from tests.training.chats import encoder
from tests.training.families import FAMILIES, Family, byte_fallback, byte_level, turns

Build = Callable[[Family], ChatTokenizer]

CHAT: Sequence[Message] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello 👋"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Bye,\n\nthen: Ha"},
]
THOUGHT = "<think>\nHm.\n</think>\n\nHello"


def lines_of(family: Family, build: Build) -> LineEncoder:
    tokenizer = build(family)
    named = tokenizer.encode("".join(family.base_eos))
    eos = frozenset(named) & tokenizer.special_ids
    return encoder(tokenizer, eos=eos, vocab_size=len(tokenizer))


def spans_of(example: Example) -> list[Span]:
    """The runs of tokens that count."""
    edges = [
        place
        for place, (one, other) in enumerate(
            zip([False, *example.counts], [*example.counts, False], strict=True)
        )
        if one != other
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_and_its_end_are_learnt_behind_what_a_server_sends(
    name: str, build: Build
) -> None:
    family = FAMILIES[name]
    lines = lines_of(family, build)
    tokenizer = lines.tokenizer
    learnt: list[str] = []
    for example in lines.examples({"messages": CHAT}):
        for start, end in spans_of(example):
            asked = CHAT[: 1 + 2 * len(learnt)]
            answer = list(example.tokens[start:end])
            assert list(example.tokens[:start]) == tokenizer.chat(asked)
            assert answer[-1] in lines.ends.all(chat=True)
            assert not lines.ends.all(chat=True).intersection(answer[:-1])
            whole = tokenizer.decode(example.tokens[:end], skip_special=False)
            before = tokenizer.decode(example.tokens[:start], skip_special=False)
            learnt.append(whole.removeprefix(before))
        assert example.counts[-1]
    answers = [str(message["content"]) for message in CHAT if message["role"] == "assistant"]
    assert learnt == [f"{family.begins}{answer}{family.ends}" for answer in answers]


@pytest.mark.parametrize("name", ["headers", "chatml as plain text", "nothing behind an answer"])
def test_a_model_that_has_learnt_stops_behind_its_answer(name: str) -> None:
    """A tiny model learns two answers by heart, and is asked for them."""
    base = replace(tiny_base("llama", vocab_size=320), eos_token_ids=frozenset())
    lines = LineEncoder.of(base, byte_level(FAMILIES[name]))
    chats: list[list[Message]] = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        for question, text in (("Hi", "Yo"), ("Is it?", "Yes"))
    ]
    found = [example for chat in chats for example in lines.examples({"messages": chat})]
    plan = TrainPlan(
        seed=5, method="lora", rank=16, learning_rate=0.02, n_epochs=40, batch_size=2, alpha=32
    )
    adapter = TrainableAdapter(base, plan.method, plan.rank, 0, plan.targets, {"alpha": 32})
    for _ in run(Trainer(base, adapter, found, (), plan)):
        pass
    ends = lines.ends.all(chat=True)
    asked = [GreedyRequest(lines.tokenizer.chat(chat[:1]), adapter, ends) for chat in chats]
    said = answer(base, asked, max_new=12, max_tokens=4096)
    assert [lines.tokenizer.decode(tokens) for tokens in said] == ["Yo", "Yes"]
    assert ends.issuperset(tokens[-1] for tokens in said)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_template_that_teaches_no_end_is_told(name: str) -> None:
    ends = lines_of(FAMILIES[name], byte_level).ends
    assert [*ends.warnings(chat=False)] == []
    warnings = [*ends.warnings(chat=True)]
    assert bool(warnings) == FAMILIES[name].warned
    for warning in warnings:
        assert "training adds '</s>' behind each answer" in warning


def test_the_warning_shows_what_closes_a_turn() -> None:
    def told(name: str) -> str:
        return next(iter(lines_of(FAMILIES[name], byte_level).ends.warnings(chat=True)))

    assert told("chatml as plain text").startswith(
        "the chat template of small closes an answer with '<|im_end|>\\n', where no token"
    )
    assert "closes an answer with nothing, where" in told("nothing behind an answer")
    assert r"with '\nUser: ', where" in told("the next role's words")


def test_a_server_stops_where_any_of_them_ends() -> None:
    """The base's end tokens end every answer, and what closes a turn ends those of chats."""
    for name, turn, eos in (
        ("headers", ["<|eot|>"], ["<|end_of_text|>"]),
        ("chatml, the base ends with another", ["<|im_end|>"], ["</s>"]),
        ("chatml, the end is no special token", ["<|im_end|>"], ["</s>"]),
        ("chatml as plain text", [], ["</s>"]),
        ("headings, and line breaks are an added token", [], ["</s>"]),
        ("roles as tokens", ["<|end|>"], ["<|endoftext|>", "<|end|>"]),
        ("turns, no system", ["</turn>"], ["</s>", "</turn>"]),
        ("the next role's token, behind all but the last", ["<|user|>"], ["</s>"]),
        ("an end behind all but the last", ["<|im_end|>"], ["</s>"]),
    ):
        ends = lines_of(FAMILIES[name], byte_level).ends
        ids = [{ends.tokenizer.encode(text)[0] for text in texts} for texts in (turn, eos)]
        assert [ends.turn, ends.eos] == ids, name
        assert ends.all(chat=False) == ends.eos
        assert ends.all(chat=True) == ends.eos | ends.turn


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
@pytest.mark.parametrize(
    "name", ["chatml, the prompt begins a thought", "a thought is begun, and hidden later"]
)
@pytest.mark.parametrize("content", [THOUGHT, THOUGHT.removeprefix("<think>\n")])
def test_a_thought_is_learnt_behind_a_prompt_that_begins_it(
    name: str, build: Build, content: str
) -> None:
    family = FAMILIES[name]
    lines = lines_of(family, build)
    chat = [CHAT[0], {"role": "assistant", "content": content}]
    (example,) = lines.examples({"messages": chat})
    text = lines.tokenizer.decode(example.tokens, skip_special=False)
    asked = lines.tokenizer.decode(lines.tokenizer.chat(chat[:1]), skip_special=False)
    assert text == f"{asked}Hm.\n</think>\n\nHello{family.ends}"
    assert asked.endswith("<think>\n")


def test_blanks_that_a_template_strips_are_not_learnt() -> None:
    lines = lines_of(FAMILIES["headers"], byte_level)
    chat = [CHAT[0], {"role": "assistant", "content": "  Hello \n"}]
    (example,) = lines.examples({"messages": chat})
    assert lines.tokenizer.decode(example.tokens, skip_special=False).endswith("\n\nHello<|eot|>")


def test_a_role_that_a_template_refuses_is_told() -> None:
    lines = lines_of(FAMILIES["turns, no system"], byte_level)
    with pytest.raises(InvalidRequest, match="refuses these messages: no system role"):
        lines.examples({"messages": [{"role": "system", "content": "Be brief."}, *CHAT]})


def test_a_template_that_wants_a_system_turn_is_asked_with_one() -> None:
    family = FAMILIES["chatml, the base ends with another"]
    refusal = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no') }}{% endif %}"
    lines = lines_of(replace(family, template=refusal + family.template), byte_level)
    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    (example,) = lines.examples({"messages": chat})
    assert lines.tokenizer.decode(example.tokens[-1:], skip_special=False) == "<|im_end|>"
    assert [*lines.ends.warnings(chat=True)] == []


def test_an_end_of_its_own_closes_a_call_of_a_tool() -> None:
    calls = "{% if m.tool_calls %}call<|eom|>{% else %}{{ m['content'] }}<|eot|>{% endif %}"
    template = turns("<|user|>CONTENT", f"<|bot|>{calls}", "<|bot|>")
    family = Family(template, "<|eot|>", ("<|user|>", "<|bot|>", "<|eom|>", "<|eot|>"))
    function = {"name": "f", "arguments": {}}
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}
    for base_eos, learnt in ((("<|eom|>",), "call<|eom|>"), ((), "call<|eom|></s>")):
        lines = lines_of(replace(family, base_eos=base_eos), byte_level)
        (example,) = lines.examples({"messages": [CHAT[0], call]})
        ((start, end),) = spans_of(example)
        answer = example.tokens[start:end]
        assert lines.tokenizer.decode(answer, skip_special=False) == learnt
        assert lines.ends.all(chat=True).issuperset(answer[-1:])


def test_a_base_without_any_end_token_teaches_nobody() -> None:
    tokenizer = byte_level(FAMILIES["headings without an end"])
    tokenizer.eos_token_id = None
    lines = encoder(tokenizer)
    for record in ({"messages": CHAT}, {"prompt": "a", "completion": "b"}):
        with pytest.raises(InvalidRequest, match="give the tokenizer an eos_token"):
            lines.examples(record)
    assert [*lines.ends.warnings(chat=True)] == []
    # The base's own files name one.
    (example,) = encoder(tokenizer, eos=frozenset({7})).examples({"prompt": "a", "completion": "b"})
    assert example.tokens[-1] == 7


def test_an_end_token_that_the_model_lacks_is_not_taught() -> None:
    tokenizer = byte_level(FAMILIES["headings without an end"])
    assert tokenizer.eos_token_id is not None
    lines = encoder(tokenizer, eos=frozenset({7}), vocab_size=tokenizer.eos_token_id)
    assert lines.ends.eos == {7}
    (example,) = lines.examples({"prompt": "a", "completion": "b"})
    assert example.tokens[-1] == 7


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("", "Hello"),
        ("", " Hello"),
        ("Q:", " Hello"),
        ("Q: ", "Hello"),
        ("Q\n", "Hello"),
        ("", "👋"),
    ],
)
def test_a_completion_stands_behind_what_a_server_sends(
    prompt: str, completion: str, build: Build
) -> None:
    lines = lines_of(FAMILIES["no template"], build)
    tokenizer = lines.tokenizer
    (example,) = lines.examples({"prompt": prompt, "completion": completion})
    ((start, end),) = spans_of(example)
    assert list(example.tokens[:start]) == tokenizer.prompt(prompt)
    assert end == len(example.tokens)
    assert example.tokens[-1] == tokenizer.eos_token_id
    shown = tokenizer.decode(example.tokens)
    assert shown == prompt + completion
