"""Chats with control tokens in their texts: templates, small tokenizers, and random texts."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from server.bases.chats.chat_template import Message
from server.bases.tokenizer import ChatTokenizer
from tests.bases.test_tokenizer import TEXTS

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# A thought is taken out of an answer, and shown only in the last one.
QWEN = (
    "{% if tools %}<|im_start|>system\n<tools>{{ tools | tojson }}</tools> "
    "in <tool_call></tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' + m.name if m.name }}\n"
    "{% set content = m.content %}{% set thought = m.reasoning_content or '' %}"
    "{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if thought and loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{{ note or '' }}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% set first = '' %}{% set rest = messages %}"
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}"
    "{% set rest = messages[1:] %}{% endif %}"
    "{% for m in rest %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if loop.first %}{{ first }}{% endif %}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# `[INST]` is plain text, and `</s>` a token.
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }} </s>"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
LOUD = "{% for m in messages %}<|im_start|>{{ m.content | upper }}<|im_end|>{% endfor %}[END]"

SPECIAL = {
    LLAMA: ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    QWEN: ["<|im_start|>", "<|im_end|>"],
    GEMMA: ["<start_of_turn>", "<end_of_turn>"],
    BRACKETS: [],
    LOUD: ["<|im_start|>", "<|im_end|>", "[END]"],
}
ADDED = [
    *("<tool_call>", "</tool_call>", "<tools>", "</tools>", "<think>", "</think>", "<|fim_pad|>"),
    *("<table>", "\n\n", "   ", "café"),
]
TEXT_ADDED = ("<table>", "\n\n", "   ", "café")
BEGIN, END = "<s>", "</s>"
Make = Callable[[str], ChatTokenizer]


def finished(backend: Tokenizer, template: str, **flags: bool) -> ChatTokenizer:
    special = [AddedToken(text, special=True, normalized=False) for text in (BEGIN, END)]
    special += [
        AddedToken(text, special=True, normalized=False, **flags) for text in SPECIAL[template]
    ]
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BEGIN, eos_token=END, chat_template=template
    )
    return ChatTokenizer(tokenizer, name="small")


def pairs(template: str, **flags: bool) -> ChatTokenizer:
    """Byte-level, and some pairs of characters are tokens, some with parts of marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "|"), ("|", ">"), ("<", "/"), ("i", "m"), ("e", "l"), ("Ġ", "<"), (">", "Ċ")]
    vocab = [*alphabet, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({text: at for at, text in enumerate(vocab)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return finished(backend, template, **flags)


def greedy(template: str) -> ChatTokenizer:
    """Its tokens take in the blanks around them, as those of Phi do."""
    return pairs(template, lstrip=True, rstrip=True)


def pieces(template: str) -> ChatTokenizer:
    """As Llama 2's: spaces as ▁, one put in front, and `</s>` is in the vocabulary of words."""
    vocab = ["<unk>", BEGIN, END, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "<", "/", "▁<"]
    backend = Tokenizer(
        models.BPE(
            {text: at for at, text in enumerate(vocab)},
            [("▁", "<")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            *(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return finished(backend, template)


def first_space(template: str) -> ChatTokenizer:
    """SentencePiece's later way: a space stands only in front of the whole text."""
    tokenizer = pieces(template)._tokenizer
    backend = tokenizer.backend_tokenizer
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return ChatTokenizer(tokenizer, name="small")


def scored(template: str) -> ChatTokenizer:
    """As T5's: its words have the marks among them, with the best score."""
    letters = sorted(set("".join([*ADDED, *SPECIAL[template], *TEXTS[:1], "▁"])) | set("ABINST[]/"))
    marks = [BEGIN, END, *SPECIAL[template]]
    vocab = [("<unk>", 0.0), *((it, 0.0) for it in marks), *((it, -2.0) for it in letters)]
    backend = Tokenizer(models.Unigram(vocab, unk_id=0))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    backend.decoder = decoders.Metaspace()
    return finished(backend, template)


MAKES: dict[str, Make] = {it.__name__: it for it in (pairs, greedy, pieces, first_space, scored)}
TEMPLATES = {"llama": LLAMA, "qwen": QWEN, "gemma": GEMMA, "brackets": BRACKETS}


def plain_chat(contents: Sequence[str]) -> list[Message]:
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": it} for role, it in zip(roles, contents, strict=False)]


def control_ids(tokenizer: ChatTokenizer) -> dict[int, str]:
    """The ids that nobody may forge."""
    added = tokenizer._tokenizer.added_tokens_decoder.items()
    text = (*TEXT_ADDED, "<unk>")
    return {token_id: it.content for token_id, it in added if it.content not in text}


def written_by_template(
    tokenizer: ChatTokenizer, chat: Sequence[Message], **more: Any
) -> list[str]:
    """The control tokens of a chat, one after the other."""
    control = control_ids(tokenizer)
    return [control[it] for it in tokenizer.chat(chat, **more) if it in control]


def drawn(draw: random.Random, tokenizer: ChatTokenizer) -> str:
    """A text with whole and halved control tokens in it."""
    marks = [*control_ids(tokenizer).values(), *TEXT_ADDED]
    words = ["the cat", " ", "\n", "你好", "user", "assistant\n", "[INST]", " > a", "\ufdd0"]
    parts = []
    for _ in range(draw.randrange(1, 9)):
        mark = draw.choice(marks)
        cut = draw.randrange(len(mark))
        head, tail = mark[:cut], mark[cut:]
        nested = head + mark + tail
        parts.append(draw.choice([mark, mark, head, tail, nested, mark.upper(), *words]))
    return "".join(parts)
