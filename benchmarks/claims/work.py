"""What a process of the pool does with a run."""

import gc
import logging
import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.claims.data import tasks
from benchmarks.claims.learning import training
from benchmarks.claims.learning.learners import build
from benchmarks.claims.runs import Outcome, Run


def make_work(
    base: str, tokens: Path, only: int, replayed: bool, device: str
) -> Callable[[Run], Outcome]:
    """What a process does with a run; `only` so many lines if it is not 0.

    `replayed`: see `Steps`."""
    quiet()
    there = tasks.load(tokens)
    if only:
        there = {name: task.first(only) for name, task in there.items()}
    return partial(work, base, there, device, replayed=replayed)


def work(
    base: str, there: dict[str, tasks.Task], device: str, run: Run, *, replayed: bool = True
) -> Outcome:
    """Train, score on what is tuned on, and on what is reported."""
    gc.collect()  # the last run's model and recordings hang in cycles
    start, task = time.perf_counter(), there[run.task]
    stream = torch.cuda.Stream() if device == "cuda" and replayed else None
    with torch.cuda.stream(stream) if stream else nullcontext():
        learner = build(run, base, device)
        train_loss = training.train(learner, task.train, run, stream) if run.steps else math.nan
        trained = time.perf_counter()
        scores: dict[str, float] = {}
        answers: tuple[tuple[int, ...], ...] = ()
        if task.written:
            tune_loss = training.loss(learner, task.tune)
            if math.isfinite(tune_loss):
                answers = training.answers(learner, task, task.train.end)
        else:
            _, tune_loss = training.chosen(learner, task.tune)
            scores = training.choice_scores(task.test, training.chosen(learner, task.test)[0])
    return Outcome(
        run=run,
        tune_loss=tune_loss if math.isfinite(tune_loss) else math.inf,
        scores=scores,
        train_loss=train_loss,
        trained=learner.trained,
        bytes=learner.bytes_at_rest(),
        seconds=trained - start,
        answers=answers,
    )


def quiet() -> None:
    """TF32 products as everywhere in the measurement, and no chatter of libraries."""
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()
