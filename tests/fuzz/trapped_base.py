"""A tiny base whose tokenizer holds what real ones hold, and what servers trip over.

Tokens are bytes, a few learnt ones, and added ones. Ids from 265 to 279 and from 284 name no token;
"qz" is a token beyond the embedding, as of a tokenizer that grew without its model; one added token
has an accent; and a chat's turn ends with a special token that is not the end of a text. Both ends
are likely: an answer that nothing bounds would be the whole context, which takes a second.
"""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models import tiny_model

VOCAB = 288
CONTEXT = 512
BEYOND = "qz"
"""A text whose token the model does not have."""

_TEMPLATE = (
    "{% if tools %}<s>tools\n{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}<s>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}"
    "{{ call.function.arguments | tojson }}{% endfor %}<|end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def save_trapped_base(folder: Path) -> None:
    """Write model and tokenizer, as `--model` takes them."""
    special = {"<pad>": 0, "<s>": 1, "</s>": 2}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learnt = {"th": 280, "the": 281, "in": 282, "ing": 283, BEYOND: VOCAB + 7}
    vocab = special | {letter: 3 + i for i, letter in enumerate(letters)} | learnt
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("in", "g"), ("q", "z")]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*special])
    backend.add_tokens([AddedToken("<été>", normalized=False)])
    backend.add_special_tokens(["<|end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    model = tiny_model("llama", vocab_size=VOCAB, max_position_embeddings=CONTEXT)
    with torch.no_grad():
        for end in ("</s>", "<|end|>"):
            model.get_parameter("lm_head.weight")[backend.token_to_id(end)] *= 3
    model.save_pretrained(folder)
