"""The measures and circumstances of one build, as the record for its model card."""

import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from tools.porch.conversations import Conversation
from tools.porch.corpus import HELD_OUT_FILES, load_sources
from tools.porch.porch_evaluation import (
    Score,
    answer_loss,
    answers,
    chats,
    continuations,
    load,
    score,
    total,
)
from tools.porch.porch_model import Porch
from tools.porch.pretrain import Curve, Source
from tools.porch.sentence_facts import written_exchanges

CHECK = Path(__file__).with_name("check.txt")
_EXAMPLES = Path(__file__).parents[2] / "examples"


def measure(
    folders: dict[str, Path], data: Path, wikitext: Path, seed: int, device: torch.device
) -> dict[str, Any]:
    """Scores each folder on held-out text and answers; samples come from the last one."""
    held_out = load_sources(data, HELD_OUT_FILES)
    talks = _answer_sets()
    rows = 64 if device.type == "cuda" else 4
    scores: dict[str, dict[str, Score]] = {}
    losses: dict[str, dict[str, float]] = {}
    for label, folder in folders.items():
        model, tokenizer = load(folder, device)
        by_source = {
            name: score(model, tokenizer, group, rows) for name, group in sorted(held_out.items())
        }
        scores[label] = {
            "WikiText-2 test": score(model, tokenizer, [wikitext.read_text("utf-8")], rows),
            "all held-out documents": total(list(by_source.values())),
            **by_source,
        }
        losses[label] = {name: answer_loss(model, tokenizer, part) for name, part in talks.items()}
        bits = scores[label]["all held-out documents"].bits_per_byte
        print(f"scored the {label} model: {bits:.4f} bits a byte, {losses[label]}", flush=True)
    return {
        "scores": {
            label: {name: asdict(value) for name, value in group.items()}
            for label, group in scores.items()
        },
        "answer_losses": losses,
        "continuations": continuations(model, tokenizer, held_out, seed),
        "chats": chats(model, tokenizer, seed),
        "answers": answers(model, tokenizer, talks["held-out questions"], seed),
    }


def circumstances(
    model: Porch, curves: dict[str, Curve], plain: list[Source], rows: int, seed: int, began: float
) -> dict[str, Any]:
    """Returns sizes, tokens, minutes and versions of one build."""
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "shape": asdict(model.shape),
        "unique_tokens": {source.name: len(source.ids) for source in plain},
        "rows": rows,
        "seed": seed,
        "curves": {
            name: {"steps": curve.steps, "tokens": curve.tokens, "seconds": round(curve.seconds, 1)}
            for name, curve in curves.items()
        },
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "build_seconds": round(time.time() - began),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def _answer_sets() -> dict[str, list[Conversation]]:
    sets = {"held-out questions": written_exchanges(CHECK)}
    for name in ("pirate", "butler"):
        lines = (_EXAMPLES / f"{name}.jsonl").read_text("utf-8").splitlines()
        sets[f"examples/{name}.jsonl"] = [json.loads(line)["messages"] for line in lines if line]
    return sets
