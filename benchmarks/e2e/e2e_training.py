"""One loop for every method, and the answers of the trained model. Knows no method."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.e2e.e2e_data import Batches, Encoded, Splits
from benchmarks.e2e.e2e_steps import Steps, summed_loss
from benchmarks.e2e.learners import Learner
from benchmarks.e2e.runs import Run
from server.bases.tokenizer import ChatTokenizer

EVALUATIONS = 4  # of the validation loss in one run, at most
_LONGEST_ANSWER = 96  # the longest of the 46,733 training and validation texts takes 94 tokens
_RECENT = 50


@dataclass(frozen=True)
class Scored:
    """The state of a run after `step` updates; `train_loss` is the mean over the last 50."""

    step: int
    valid_loss: float
    train_loss: float


def train(
    learner: Learner, splits: Splits, run: Run, stream: torch.cuda.Stream | None = None
) -> Iterator[Scored]:
    """Yields each time the validation split was scored, last after the last step."""
    steps = Steps(learner, splits.train, run, stream)
    valid = Batches(splits.valid, learner.base.device)
    every = math.ceil(steps.total / EVALUATIONS)
    recent: deque[Tensor] = deque(maxlen=_RECENT)
    for step in range(1, steps.total + 1):
        recent.append(steps.take())
        if step % every == 0 or step == steps.total:
            train_loss = torch.stack(list(recent)).mean().item()
            scored = Scored(step, valid_loss(learner, valid), train_loss)
            yield scored
            if not math.isfinite(scored.train_loss + scored.valid_loss):
                return


@torch.no_grad()
def valid_loss(learner: Learner, batches: Batches, size: int = 512) -> float:
    """Nats per token of the texts, over the whole split."""
    total, count = torch.zeros((), dtype=torch.float64, device=learner.base.device), 0
    with learner.active():
        for batch in batches.in_order(size):
            total += summed_loss(learner.base, batch)
            count += batch.num_targets
    return total.item() / count


@torch.no_grad()
def answers(
    learner: Learner, rows: Encoded, tokenizer: ChatTokenizer, *, beams: int = 1
) -> list[str]:
    """What the model writes after each prompt: most likely tokens, or a search with `beams`."""
    prompts = [
        rows.tokens[start : start + length].tolist()
        for start, length in zip(rows.starts, rows.prompts, strict=False)
    ]
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = learner.base.device
    generate: Callable[..., Tensor] = learner.base.model.generate  # type: ignore[assignment]
    with learner.active():
        output: Tensor = generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=_LONGEST_ANSWER,
            do_sample=False,
            num_beams=beams,
            pad_token_id=0,
            eos_token_id=tokenizer.eos_token_id,
        )
    ends = {tokenizer.eos_token_id, 0}
    return [_text(answer, ends, tokenizer) for answer in output[:, width:].tolist()]


def _text(answer: list[int], ends: set[int | None], tokenizer: ChatTokenizer) -> str:
    end = next((place for place, token in enumerate(answer) if token in ends), len(answer))
    return " ".join(tokenizer.decode(answer[:end]).split())
