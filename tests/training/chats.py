"""A byte-per-token tokenizer and chat templates of every kind, for the tests of training."""

from dataclasses import replace

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from server.bases.tokenizer import ChatTokenizer
from server.training.run.examples import LineEncoder
from tests.models import tiny_base

SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]

MARKED = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\\n' -}}"
    "{%- if m['role'] == 'assistant' -%}"
    "{%- generation -%}{{- m['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- m['content'] + '<|im_end|>' -}}{%- endif -%}{{- '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
UNMARKED = MARKED.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
# Marks end before the end-of-turn token.
MARKED_SHORT = MARKED.replace(
    "{{- m['content'] + '<|im_end|>' -}}{%- endgeneration -%}",
    "{{- m['content'] -}}{%- endgeneration -%}{{- '<|im_end|>' -}}",
)
# As Qwen3's: an answer is rendered with an empty thought only while it is the last turn.
FORGETFUL = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\\n' -}}"
    "{%- if m['role'] == 'assistant' and loop.last -%}{{- '<think></think>' -}}{%- endif -%}"
    "{{- m['content'] + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
# Reads tools, and writes calls in a form of its own, as Qwen's and Llama's do.
WITH_TOOLS = (
    "{%- if tools -%}{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    + MARKED.replace(
        "{%- generation -%}{{- m['content'] + '<|im_end|>' -}}",
        "{%- generation -%}{{- m['content'] -}}{%- for call in m.tool_calls or [] -%}"
        "{{- '<call>' + call.function.name + '(' + call.function.arguments['city'] + ')' -}}"
        "{%- endfor -%}{{- '<|im_end|>' -}}",
    )
)
# It asks for answers in other words than it shows them.
CONTRARY = UNMARKED.replace("{{- '<|im_start|>assistant\\n' -}}", "{{- 'ANSWER NOW: ' -}}")


def encoder(
    tokenizer: ChatTokenizer,
    *,
    eos: frozenset[int] = frozenset(),
    vocab_size: int = 300,
    max_tokens: int = 1000,
) -> LineEncoder:
    """For a base whose own files name the end tokens `eos`."""
    base = replace(
        tiny_base("llama"), eos_token_ids=eos, vocab_size=vocab_size, max_context=max_tokens
    )
    return LineEncoder.of(base, tokenizer)


def byte_tokenizer(chat_template: str | None = MARKED, *, bos: str = "<|end|>") -> ChatTokenizer:
    """One token per byte: every position can be read off the text. 259 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="<|im_end|>"
    )
    tokenizer.chat_template = chat_template
    return ChatTokenizer(tokenizer, name="bytes")
