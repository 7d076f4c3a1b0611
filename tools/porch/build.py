"""Builds Porch from the text in one command.

python -m tools.porch.build --data TEXTS --wikitext TEST.txt --out server/bases/porch
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from tools.porch.card import write_card
from tools.porch.chat_tuning import (
    CHAT_SHARES,
    Talks,
    all_conversations,
    encode_talks,
    packed_source,
    running_source,
)
from tools.porch.corpus import TRAIN_FILES, load_sources
from tools.porch.measure import circumstances, measure
from tools.porch.porch_model import Porch, Shape, to_hugging_face
from tools.porch.porch_tokenizer import encode_documents, load_tokenizer, train_tokenizer
from tools.porch.pretrain import Curve, Plan, Source, train

_TOKENIZER_CHARACTERS = 80_000_000
_TOKENIZER_SEED = 1234
_DECAY_FROM = 0.6
_REPLAY = 0.14

# Shares of the pre-training rows while the rate holds, and at the end of its fall.
_STEADY_SHARES = {
    "books": 0.32,
    "simple_books": 0.20,
    "encyclopedia": 0.12,
    "textbooks": 0.075,
    "stories": 0.025,
    "dialogues": 0.025,
    "prompts": 0.03,
    "glosses": 0.025,
    "guides": 0.015,
    "bibles": 0.015,
    "tale_questions": 0.02,
    "medical": 0.015,
    "arithmetic": 0.01,
    "commands": 0.01,
    "instructions": 0.005,
    "chat": 0.09,
}
_FINAL = {
    **_STEADY_SHARES,
    "books": 0.26,
    "simple_books": 0.19,
    "encyclopedia": 0.13,
    "textbooks": 0.065,
    "stories": 0.04,
    "prompts": 0.02,
    "chat": 0.16,
}


@dataclass(frozen=True)
class Options:
    """What the command line asks for; sizes in rows, times in minutes."""

    data: Path
    wikitext: Path
    out: Path
    tokenizer: Path | None
    minutes: float
    chat_minutes: float
    rows: int
    seed: int
    tiny: bool


def main() -> None:
    """Runs the whole build: tokenizer, tokens, training, tuning, measures and card."""
    options = _options()
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.time()
    documents = load_sources(options.data, TRAIN_FILES)
    print(f"read {sum(map(len, documents.values()))} documents, {_since(started)}", flush=True)
    tokenizer = _tokenizer(options, documents)
    plain, talks = _encode(tokenizer, documents, options.seed, device)
    print(f"encoded {sum(len(s.ids) for s in plain) / 1e6:.1f} M tokens, {_since(started)}")

    shape = Shape(hidden=64, heads=1, key_heads=1, layers=2, inner=128) if options.tiny else Shape()
    model = Porch(shape).to(device)
    base_folder = _base_folder(options)
    curves = {"pretraining": _pretrain(model, plain, talks, options, tokenizer, device)}
    _save(model, tokenizer, base_folder)
    curves["chat tuning"] = _tune(model, plain, talks, options, device)
    _save(model, tokenizer, options.out)
    print(f"trained, {_since(started)}", flush=True)
    folders = {"pretrained": base_folder, "tuned": options.out}
    record = measure(folders, options.data, options.wikitext, options.seed, device)
    record |= circumstances(model, curves, plain, options.rows, options.seed, started)
    (options.out / "record.json").write_text(json.dumps(record, indent=1))
    write_card(options.out, record, curves)
    print(f"finished, {_since(started)}", flush=True)


def _tokenizer(options: Options, documents: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    if options.tokenizer:
        return load_tokenizer(options.tokenizer)
    texts = [document for group in documents.values() for document in group]
    return train_tokenizer(texts, _TOKENIZER_CHARACTERS, _TOKENIZER_SEED)


def _encode(
    tokenizer: PreTrainedTokenizerFast,
    documents: dict[str, list[str]],
    seed: int,
    device: torch.device,
) -> tuple[list[Source], list[Talks]]:
    """Returns the plain sources on the device, and the conversations made from them."""
    chance = random.Random(seed)
    plain = []
    for name, group in sorted(documents.items()):
        chance.shuffle(group)
        ids = encode_documents(tokenizer, group, name).astype(np.int32)
        if len(ids) > 2 * 1025:
            plain.append(Source(name, torch.from_numpy(ids).to(device)))
    kinds = all_conversations(documents, chance)
    return plain, [encode_talks(tokenizer, kind, group) for kind, group in kinds.items()]


def _pretrain(
    model: Porch,
    plain: list[Source],
    talks: list[Talks],
    options: Options,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
) -> Curve:
    def shares(progress: float) -> dict[str, float]:
        fallen = max(0.0, (progress - _DECAY_FROM) / (1 - _DECAY_FROM))
        mixed = {
            name: _STEADY_SHARES[name] + fallen * (_FINAL[name] - _STEADY_SHARES[name])
            for name in _STEADY_SHARES
        }
        chat = mixed.pop("chat")
        return mixed | {f"chat {kind}": chat * part for kind, part in CHAT_SHARES.items()}

    plan = Plan(
        minutes=options.minutes,
        rows=options.rows,
        shares=shares,
        matrix_rate=0.02,
        other_rate=0.003,
        warmup_steps=100,
        decay_from=_DECAY_FROM,
        seed=options.seed,
    )
    sources = plain + [running_source(group, device) for group in talks]
    folder = _base_folder(options)
    return train(model, sources, plan, "pretraining", lambda saved: _save(saved, tokenizer, folder))


def _tune(
    model: Porch, plain: list[Source], talks: list[Talks], options: Options, device: torch.device
) -> Curve:
    texts = {name: share for name, share in _STEADY_SHARES.items() if name != "chat"}
    shares = {name: _REPLAY * share / sum(texts.values()) for name, share in texts.items()}
    for kind, share in CHAT_SHARES.items():
        shares[f"chat {kind}"] = (1 - _REPLAY) * share
    plan = Plan(
        minutes=options.chat_minutes,
        rows=max(1, options.rows // 2),
        shares=lambda _: shares,
        matrix_rate=0.003,
        other_rate=0.0005,
        warmup_steps=20,
        decay_from=0.0,
        seed=options.seed + 1,
    )
    chance = random.Random(options.seed)
    packed = [packed_source(group, chance, device) for group in talks]
    return train(model, plain + packed, plan, "chat tuning")


def _base_folder(options: Options) -> Path:
    """The weights before tuning stay out of the model's folder, which has to be small."""
    return options.out.with_name(options.out.name + "-pretrained")


def _save(model: Porch, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    to_hugging_face(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the training texts")
    parser.add_argument("--wikitext", type=Path, required=True, help="WikiText-2 test.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer to use again")
    parser.add_argument("--minutes", type=float, default=12.5, help="of pre-training")
    parser.add_argument("--chat-minutes", type=float, default=1.5, help="of chat tuning")
    parser.add_argument("--rows", type=int, default=192, help="rows of 1024 tokens a step")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="rehearse with a toy model")
    return Options(**vars(parser.parse_args()))


def _since(started: float) -> str:
    return f"{time.time() - started:.0f} s in"


if __name__ == "__main__":
    main()
