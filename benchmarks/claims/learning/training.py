"""One loop for every method, and what the model scores and writes. Knows no method."""

import math
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.claims.data.rows import NO_CHOICE, Batches, Encoded
from benchmarks.claims.data.task_texts import GROUPS
from benchmarks.claims.data.tasks import Task
from benchmarks.claims.learning.learners import Learner
from benchmarks.claims.learning.steps import Steps, hidden_states, logits_at, summed_loss
from benchmarks.claims.runs import Run

_RECENT = 50
_TOKENS = 8_192  # positions of one forward pass without gradients, about


def train(
    learner: Learner, rows: Encoded, run: Run, stream: torch.cuda.Stream | None = None
) -> float:
    """Take all steps of a run; the mean loss of the last 50 of them."""
    steps = Steps(learner, rows, run, stream)
    recent: deque[Tensor] = deque(maxlen=_RECENT)
    for _ in range(steps.total):
        recent.append(steps.take())
    return torch.stack(list(recent)).mean().item()


@torch.no_grad()
def loss(learner: Learner, rows: Encoded) -> float:
    """Nats per token of the answers, over all rows; infinite if it is not a number."""
    batches = Batches(rows, learner.base.device)
    total, count = torch.zeros((), dtype=torch.float64, device=learner.base.device), 0
    with learner.active():
        for indices in batches.in_order(_rows_at_once(rows)):
            batch = batches.batch(indices)
            total += summed_loss(learner.base, batch)
            count += batch.num_targets
    mean = total.item() / count
    return mean if math.isfinite(mean) else math.inf


@torch.no_grad()
def chosen(learner: Learner, rows: Encoded) -> tuple[NDArray[np.int64], float]:
    """Of each row, the number of the choice that the model thinks likeliest; and the mean loss of
    the right one among the choices, in nats."""
    picked = np.zeros(len(rows), np.int64)
    total, base = 0.0, learner.base
    batches = Batches(rows, base.device)
    with learner.active():
        for indices in batches.in_order(_rows_at_once(rows)):
            batch = batches.batch(indices)
            offsets = np.arange(len(indices)) * batch.ids.shape[1]
            places = torch.from_numpy(rows.decides[indices] - 1 + offsets).to(base.device)
            choices = torch.from_numpy(rows.choices[indices]).long().to(base.device)
            logits = logits_at(base, hidden_states(base, batch.ids), places).float()
            offered = logits.gather(1, choices.clamp_min(0))
            offered = offered.masked_fill(choices == NO_CHOICE, -torch.inf)
            picked[indices] = offered.argmax(1).cpu().numpy()
            gold = torch.from_numpy(rows.gold[indices]).long().to(base.device)
            total += functional.cross_entropy(offered, gold, reduction="sum").item()
    return picked, total / len(rows)


def choice_scores(rows: Encoded, picked: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy in percent, in all and by data set where there are several; Matthews' correlation
    and F1 of the second choice, both in percent, where there are two."""
    right = picked == rows.gold
    scores = {"accuracy": 100 * float(right.mean())}
    groups = sorted(set(rows.groups.tolist()))
    if len(groups) > 1:
        by_group = {GROUPS[g]: 100 * float(right[rows.groups == g].mean()) for g in groups}
        return by_group | {"accuracy": sum(by_group.values()) / len(by_group)}
    if rows.choices.shape[1] == 2:
        yes, said = rows.gold == 1, picked == 1
        both = float((yes & said).sum())
        scores["F1"] = 100 * 2 * both / max(1.0, float(yes.sum() + said.sum()))
        scores["MCC"] = 100 * _correlation(yes, said)
    return scores


def _correlation(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


@torch.no_grad()
def answers(learner: Learner, task: Task, end: int) -> tuple[tuple[int, ...], ...]:
    """What the model writes after each prompt of the test: the most likely tokens, up to `end`."""
    prompts = [task.test.prompt(row) for row in range(len(task.test))]
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = learner.base.device
    generate: Callable[..., Tensor] = learner.base.model.generate  # type: ignore[assignment]
    with learner.active():
        output: Tensor = generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=task.written,
            do_sample=False,
            pad_token_id=end,
            eos_token_id=end,
        )
    return tuple(tuple(_until(end, answer)) for answer in output[:, width:].tolist())


def _until(end: int, tokens: list[int]) -> Iterable[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def _rows_at_once(rows: Encoded) -> int:
    return max(8, _TOKENS // max(1, int(rows.lengths.mean())))
