"""One job as a user of PEFT trains it: VeRA in transformers' Trainer."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from peft import VeraConfig, get_peft_model
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from server.adapters.learning.trainable import TrainableAdapter
from server.bases.model import BaseModel
from server.training.run.defaults import TrainPlan
from server.training.run.examples import Example

_WARM_UP = 5


class _Watch(TrainerCallback):
    """When each step ended."""

    def __init__(self, device: torch.device) -> None:
        self.ends: list[float] = []
        self._device = device

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def peft_seconds_per_step(
    base: BaseModel,
    plan: TrainPlan,
    examples: Sequence[Example],
    like: TrainableAdapter,
    steps: int,
) -> float:
    """The median of `steps` steps, after a few to warm up. `base` is PEFT's afterwards."""
    config = VeraConfig(
        r=plan.rank, target_modules=list(like.targets), projection_prng_key=0, save_projection=False
    )
    model = get_peft_model(base.model, config)
    rows = [{"input_ids": list(e.tokens), "labels": list(e.tokens)} for e in examples]
    watch = _Watch(base.device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=plan.batch_size,
            max_steps=steps + _WARM_UP,
            learning_rate=plan.learning_rate,
            lr_scheduler_type="cosine",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=base.device.type == "cpu",
            dataloader_pin_memory=base.device.type == "cuda",
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=_collated,
            callbacks=[watch],
        ).train()
    ends = watch.ends[_WARM_UP - 1 :]
    return statistics.median(b - a for a, b in pairwise(ends))


def _collated(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}
