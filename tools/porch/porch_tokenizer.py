"""Trains the byte-level BPE tokenizer, gives it a chat template and packs texts into ids."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

VOCABULARY = 8192
DOCUMENT_END = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
CONTEXT = 1024

# The generation marks let a trainer ask the template which tokens the assistant wrote.
CHAT_TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_PIECE_CHARACTERS = 20_000
_BATCH_PIECES = 2048


def train_tokenizer(documents: list[str], characters: int, seed: int) -> PreTrainedTokenizerFast:
    """Trains on an even sample of about `characters` characters of the documents."""
    pieces = [piece for document in documents for piece in _pieces(document)]
    random.Random(seed).shuffle(pieces)
    used = pieces[: max(1, characters * len(pieces) // max(1, sum(map(len, pieces))))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[DOCUMENT_END, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(used, trainer)
    return wrap_tokenizer(tokenizer)


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Gives a trained tokenizer the special tokens and the chat template of the model."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=DOCUMENT_END,
        eos_token=TURN_END,
        pad_token=DOCUMENT_END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Reads the tokenizer that `build` saved in a folder."""
    return wrap_tokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")))


def encode_documents(
    tokenizer: PreTrainedTokenizerFast, documents: Iterable[str], label: str
) -> np.ndarray:
    """Returns all documents as one uint16 row of ids, each closed by the document end."""
    backend = tokenizer.backend_tokenizer
    batches = list(_batches(documents))
    rows: list[np.ndarray] = []
    for batch in tqdm(batches, desc=f"tokens of {label}", disable=len(batches) < 10):
        encoded = backend.encode_batch_fast(batch, add_special_tokens=False)
        rows.extend(np.array(piece.ids, dtype=np.uint16) for piece in encoded)
    return np.concatenate(rows)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.extend(_pieces(document))
        batch[-1] += DOCUMENT_END
        if len(batch) >= _BATCH_PIECES:
            yield batch
            batch = []
    if batch:
        yield batch


def _pieces(document: str) -> Iterator[str]:
    """Cuts a document after line ends, so that long books encode in parallel."""
    start = 0
    while len(document) - start > _PIECE_CHARACTERS:
        cut = document.rfind("\n", start + 1, start + _PIECE_CHARACTERS) + 1
        cut = cut or start + _PIECE_CHARACTERS
        yield document[start:cut]
        start = cut
    yield document[start:]
