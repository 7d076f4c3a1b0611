"""A template's own system prompt can be left out, where it is one, and nothing else changes."""

import pytest

from server.bases.tokenizer import ChatTokenizer
from tests.training.chats import byte_tokenizer

ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
FIRST = "{% if messages[0]['role'] != 'system' %}"
HELP = "<|im_start|>system\nHelp.<|im_end|>\n"
ADDED = f"{FIRST}{HELP}{{% endif %}}{TURNS}{ASK}"
MARKED = "{{ bos_token }}" + ADDED
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\nHelp. Tools: {{ tools|length }}<|im_end|>\n{% else %}"
    f"{FIRST}{HELP}{{% endif %}}{{% endif %}}{TURNS}{ASK}"
)
# A system message and the template's own words are a part of the first question.
MERGED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<|im_end|>"
    "{% elif m['role'] == 'user' %}[{% if loop.first %}<<Help.>> {% elif loop.index == 2 and "
    "messages[0]['role'] == 'system' %}<<{{ messages[0]['content'] }}>> {% endif %}"
    "{{ m['content'] }}]{% endif %}{% endfor %}"
)
# Every chat has a system turn with the same words, and more where a message brings some.
ALWAYS = (
    "<|im_start|>system\nToday: Monday.\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}<|im_end|>\n"
    "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}" + ASK
)
NONE = TURNS + ASK
SYSTEM = {"role": "system", "content": "Be brief."}
DEVELOPER = {"role": "developer", "content": "Be brief."}
QUESTION = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "So."}


@pytest.mark.parametrize("begins", ["", "<|end|>"])
def test_it_is_left_out_of_a_chat_that_has_no_system_message(begins: str) -> None:
    tokenizer = byte_tokenizer(MARKED if begins else ADDED)
    bare = tokenizer.without_default_prompt()
    assert (tokenizer.has_default_prompt, bare.has_default_prompt) == (True, False)
    for chat in ([QUESTION], [QUESTION, ANSWER, QUESTION], [DEVELOPER, QUESTION]):
        written = tokenizer.render(chat)
        assert written.startswith(begins + HELP)
        assert bare.render(chat) == begins + written.removeprefix(begins + HELP)
        assert bare.decode(bare.chat(chat), skip_special=False) == bare.render(chat)


@pytest.mark.parametrize("begins", ["", "<|im_start|>"])
def test_a_mark_that_begins_every_turn_is_not_left_behind(begins: str) -> None:
    """As in SmolLM2, whose text begins with its first turn's mark."""
    tokenizer = byte_tokenizer(MARKED if begins else ADDED, bos="<|im_start|>")
    assert tokenizer.render([QUESTION]).startswith(f"{begins}{HELP}<|im_start|>user")
    bare = tokenizer.without_default_prompt().render([QUESTION])
    assert bare == f"{begins}<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", [ADDED, MARKED, WITH_TOOLS])
def test_a_system_message_stays_though_it_says_the_same(template: str) -> None:
    tokenizer = byte_tokenizer(template)
    for said in ("Be brief.", "Help."):
        chat = [{"role": "system", "content": said}, QUESTION]
        assert tokenizer.without_default_prompt().render(chat) == tokenizer.render(chat)


def test_it_stays_where_it_tells_of_tools() -> None:
    tokenizer = byte_tokenizer(WITH_TOOLS)
    bare = tokenizer.without_default_prompt()
    tools = [{"type": "function"}]
    assert bare.render([QUESTION], tools=tools) == tokenizer.render([QUESTION], tools=tools)
    assert bare.render([QUESTION]) != tokenizer.render([QUESTION])


@pytest.mark.parametrize("template", [MERGED, ALWAYS, NONE, None])
def test_a_template_that_writes_no_such_turn_is_used_as_it_is(template: str | None) -> None:
    tokenizer = byte_tokenizer(template)
    assert tokenizer.without_default_prompt() is tokenizer


def test_a_template_that_refuses_is_used_as_it_is() -> None:
    tokenizer = byte_tokenizer("{{ raise_exception('no') }}")
    assert tokenizer.without_default_prompt() is tokenizer


def test_it_is_left_out_once_and_stays_so() -> None:
    tokenizer = byte_tokenizer(ADDED)
    bare: ChatTokenizer = tokenizer.without_default_prompt().capped(50).without_default_prompt()
    assert bare.render([QUESTION]) == tokenizer.render([QUESTION]).removeprefix(HELP)
    assert tokenizer.render([QUESTION]).startswith(HELP), "the first has not changed"
