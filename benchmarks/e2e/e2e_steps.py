"""Optimizer steps, the same for every method. Knows no method.

On a model this small a step is hundreds of tiny kernels, which one processor core starts more
slowly than the GPU works them off. A batch of a shape that was seen before is therefore replayed
as one recording (a CUDA graph) of forward, backward and update: the same kernels, started at once.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.e2e.e2e_data import IGNORED, Batch, Batches, Encoded
from benchmarks.e2e.learners import Learner
from benchmarks.e2e.runs import Run
from server.bases.model import BaseModel
from server.training.run.trainer import learning_rate

WARMUP = 0.06


@dataclass(frozen=True)
class _Recording:
    """A step of one shape: what it reads, and where it leaves the loss."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    loss: Tensor


class Steps:
    """AdamW without weight decay or clipping, over the epochs of a run; the rate rises over 6 % of
    the steps, then falls as a cosine. Nothing in a step waits for the GPU.

    `stream`: replay steps; the caller runs everything, evaluation too, within it. None: do not.
    """

    def __init__(
        self, learner: Learner, rows: Encoded, run: Run, stream: torch.cuda.Stream | None = None
    ) -> None:
        self._learner = learner
        self._batches = Batches(rows, learner.base.device)
        self._run = run
        self._stream = stream
        self._per_epoch = math.ceil(len(rows) / run.batch)
        self._order: list[list[int]] = []
        self._factors = [group.factor for group in learner.groups]
        on_device = learner.base.device.type == "cuda"
        self._optimizer = torch.optim.AdamW(
            [
                # A tensor, so that a recording reads what the rate is when it is replayed.
                {"params": group.parameters, "lr": torch.zeros((), device=learner.base.device)}
                for group in learner.groups
            ],
            weight_decay=0.0,
            fused=True,
            capturable=on_device,
        )
        self._recordings: dict[tuple[int, ...], _Recording | None] = {}
        self._pool = torch.cuda.graph_pool_handle() if stream else None
        self.total = self._per_epoch * run.epochs
        self.done = 0
        self.num_tokens = 0

    def take(self) -> Tensor:
        """One step; the mean loss of its batch, still on the device."""
        epoch, place = divmod(self.done, self._per_epoch)
        if place == 0:
            self._order = self._batches.epoch(self._run.batch, seed=self._run.seed, epoch=epoch)
        batch = self._batches.batch(self._order[place])
        rate = self._rate()
        for group, factor in zip(self._optimizer.param_groups, self._factors, strict=True):
            group["lr"].fill_(rate * factor)
        loss = self._replayed(batch) if self._stream else self._plain(batch)
        self.done += 1
        self.num_tokens += batch.num_tokens
        return loss

    def _plain(self, batch: Batch) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        with self._learner.active():
            loss = summed_loss(self._learner.base, batch) / batch.count
            torch.autograd.backward(loss)
        self._optimizer.step()
        return loss.detach()

    def _replayed(self, batch: Batch) -> Tensor:
        """The first batch of a shape runs plainly and the second is recorded."""
        shape = (*batch.ids.shape, len(batch.targets))
        if shape not in self._recordings:
            self._recordings[shape] = None
            return self._plain(batch)
        recording = self._recordings[shape]
        if recording is None:
            recording = self._recordings[shape] = self._record(batch)
        recording.batch.copy_from(batch)
        recording.graph.replay()
        return recording.loss.clone()

    def _record(self, batch: Batch) -> _Recording:
        graph, loss = torch.cuda.CUDAGraph(), torch.zeros((), device=self._learner.base.device)
        own = batch.clone()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            loss.copy_(self._plain(own))
        return _Recording(graph, own, loss)

    def _rate(self) -> float:
        warmup = round(WARMUP * self.total)
        return learning_rate(self.done, self._run.rate, self.total, warmup, "cosine")


def summed_loss(base: BaseModel, batch: Batch) -> Tensor:
    """Cross-entropy in nats, summed over the tokens of the texts. Rows are padded at the right and
    attention is causal, so no position that counts sees the padding."""
    hidden = base.model.get_decoder()(
        input_ids=batch.ids, attention_mask=_causal(batch.ids, base.dtype), use_cache=False
    ).last_hidden_state
    counted = hidden.flatten(0, 1).index_select(0, batch.places)
    logits: Tensor = base.model.get_output_embeddings()(counted)
    return functional.cross_entropy(
        logits.float(), batch.targets, reduction="sum", ignore_index=IGNORED
    )


def _causal(ids: Tensor, dtype: torch.dtype) -> Tensor:
    """[1, 1, length, length], to be added: given ready-made, so that transformers does not ask the
    GPU what the positions are, for which every step would wait."""
    length = ids.shape[1]
    lowest = torch.finfo(dtype).min
    return torch.full((1, 1, length, length), lowest, dtype=dtype, device=ids.device).triu(1)
