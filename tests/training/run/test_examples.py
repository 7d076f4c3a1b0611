"""Which tokens of a conversation are learnt."""

from collections.abc import Mapping

import pytest

from server.bases.tokenizer import ChatTokenizer
from server.errors import InvalidDataset, InvalidRequest
from server.training.run.examples import Example, build_examples
from tests.training.chats import (
    CONTRARY,
    FORGETFUL,
    MARKED,
    MARKED_SHORT,
    UNMARKED,
    WITH_TOOLS,
    byte_tokenizer,
    encoder,
)

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello 👋"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Bye."},
]


def encode_record(record: Mapping[str, object], tokenizer: ChatTokenizer) -> list[Example]:
    return encoder(tokenizer).examples(record)


def learnt(example: Example, tokenizer: ChatTokenizer) -> list[str]:
    """The texts of the runs that count."""
    runs: list[list[int]] = [[]]
    for token, counts in zip(example.tokens, example.counts, strict=True):
        if counts:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run, skip_special=False) for run in runs if run]


@pytest.mark.parametrize("template", [MARKED, UNMARKED, MARKED_SHORT])
def test_the_answers_and_their_ends_count(template: str) -> None:
    tokenizer = byte_tokenizer(template)
    (example,) = encode_record({"messages": CHAT}, tokenizer)
    assert learnt(example, tokenizer) == ["Hello 👋<|im_end|>", "Bye.<|im_end|>"]
    whole = tokenizer.chat(CHAT, add_generation_prompt=False)
    assert list(example.tokens) == whole[: len(example.tokens)]
    assert example.counts[-1]


@pytest.mark.parametrize("template", [MARKED, UNMARKED, MARKED_SHORT])
def test_messages_of_weight_0_are_read_but_not_learnt(template: str) -> None:
    tokenizer = byte_tokenizer(template)
    chat = [dict(message, weight=int(i != 2)) for i, message in enumerate(CHAT)]
    (example,) = encode_record({"messages": chat}, tokenizer)
    assert learnt(example, tokenizer) == ["Bye.<|im_end|>"]
    assert "Hello 👋" in tokenizer.decode(example.tokens)


CALL = {"id": "c1", "type": "function"}
USE: list[dict[str, object]] = [
    {"role": "user", "content": "Oslo?"},
    {
        "role": "assistant",
        "tool_calls": [CALL | {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "sun"},
    {"role": "assistant", "content": "Sunny."},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


@pytest.mark.parametrize("marks", [True, False])
def test_tools_stand_where_the_template_has_them_and_calls_are_learnt(marks: bool) -> None:
    template = WITH_TOOLS
    if not marks:
        template = template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    tokenizer = byte_tokenizer(template)
    (example,) = encode_record({"messages": USE, "tools": TOOLS}, tokenizer)
    assert learnt(example, tokenizer) == ["<call>weather(Oslo)<|im_end|>", "Sunny.<|im_end|>"]
    whole = tokenizer.decode(example.tokens, skip_special=False)
    assert whole.startswith("<|im_start|>system\n[{") and "tool\nsun" in whole


@pytest.mark.parametrize("template", [MARKED, None])
def test_a_template_without_tools_refuses_the_line(template: str | None) -> None:
    records: list[Mapping[str, object]] = [
        {"messages": CHAT, "tools": TOOLS},
        {"messages": CHAT},
        {"messages": USE},
    ]
    with pytest.raises(InvalidDataset) as caught:
        build_examples(enumerate(records, 1), encoder(byte_tokenizer(template)))
    reasons = {problem.line: problem.reason for problem in caught.value.problems}
    assert reasons.keys() == {1, 3}
    assert "bytes has no place for tools: leave them out" in reasons[1]
    assert "bytes has no place for tool_calls" in reasons[3]


def test_nothing_to_learn_gives_no_example(tokenizer: ChatTokenizer) -> None:
    silent = [dict(message, weight=0) for message in CHAT]
    assert encode_record({"messages": silent}, tokenizer) == []
    assert encode_record({"messages": CHAT[:2]}, tokenizer) == []


def test_a_template_without_marks_equals_one_with_them() -> None:
    marked, unmarked = byte_tokenizer(MARKED), byte_tokenizer(UNMARKED)
    record = {"messages": CHAT}
    assert encode_record(record, marked) == encode_record(record, unmarked)


def test_a_template_that_rewrites_earlier_turns_gives_one_example_per_answer() -> None:
    tokenizer = byte_tokenizer(FORGETFUL)
    first, second = encode_record({"messages": CHAT}, tokenizer)
    assert learnt(first, tokenizer) == ["<think></think>Hello 👋<|im_end|>"]
    assert learnt(second, tokenizer) == ["<think></think>Bye.<|im_end|>"]
    assert "<think></think>Hello" not in tokenizer.decode(second.tokens)


def test_a_prompt_unlike_the_rendered_turn_is_what_is_trained_on() -> None:
    tokenizer = byte_tokenizer(CONTRARY)
    first, second = encode_record({"messages": CHAT}, tokenizer)
    assert learnt(first, tokenizer) == ["Hello 👋<|im_end|>"]
    assert learnt(second, tokenizer) == ["Bye.<|im_end|>"]
    asked = tokenizer.chat(CHAT[:4])
    assert list(second.tokens[: len(asked)]) == asked
    assert tokenizer.decode(asked).endswith("ANSWER NOW: ")


def test_a_template_in_which_an_answer_cannot_be_found_is_refused() -> None:
    hiding = CONTRARY.replace("m['content']", "(m['content'] | upper)")
    with pytest.raises(InvalidRequest, match=r"message 4 .*cannot be found; leave the line out"):
        encode_record({"messages": CHAT}, byte_tokenizer(hiding))


def test_prompt_and_completion(tokenizer: ChatTokenizer) -> None:
    (example,) = encode_record({"prompt": "1 + 1 =", "completion": " 2"}, tokenizer)
    assert learnt(example, tokenizer) == [" 2<|im_end|>"]
    assert tokenizer.decode(example.tokens, skip_special=False) == "1 + 1 = 2<|im_end|>"


def test_without_a_prompt_every_token_counts_behind_the_one_that_begins_a_text(
    tokenizer: ChatTokenizer,
) -> None:
    (example,) = encode_record({"prompt": "", "completion": "abc"}, tokenizer)
    assert learnt(example, tokenizer) == ["abc<|im_end|>"]
    assert tokenizer.decode(example.tokens[:1], skip_special=False) == "<|end|>"
    assert list(example.tokens[:1]) == tokenizer.prompt("")
    assert example.counts == (False, True, True, True, True)


def test_one_list_per_line() -> None:
    tokenizer = byte_tokenizer(FORGETFUL)
    lines = [(1, {"messages": CHAT}), (2, {"messages": CHAT[:3]})]
    found = build_examples(lines, encoder(tokenizer))
    assert [len(examples) for examples in found] == [2, 1]


def test_every_bad_line_is_named(tokenizer: ChatTokenizer) -> None:
    good = {"messages": CHAT[:3]}
    long = {"prompt": "x" * 90, "completion": "y" * 20}
    image = {"role": "user", "content": [{"type": "image_url"}]}
    bad = {"messages": [image, {"role": "assistant", "content": "b"}]}
    with pytest.raises(InvalidDataset) as caught:
        build_examples([(1, good), (3, long), (7, bad)], encoder(tokenizer, max_tokens=100))
    assert [problem.line for problem in caught.value.problems] == [3, 7]
    assert "111 tokens are more than the 100" in caught.value.problems[0].reason
    assert "'image_url'" in caught.value.problems[1].reason
