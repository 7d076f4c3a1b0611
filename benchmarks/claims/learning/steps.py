"""Optimizer steps, the same for every method. Knows no method.

On a model this small a step is hundreds of tiny kernels, which one processor core starts more
slowly than the GPU works them off. A batch of a shape that was seen before is therefore replayed
as one recording (a CUDA graph) of forward, backward and update: the same kernels, started at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.claims.data.rows import IGNORED, Batch, Batches, Encoded
from benchmarks.claims.learning.learners import Learner
from benchmarks.claims.runs import Run
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
    """AdamW without weight decay or clipping, epoch after epoch until the steps of a run are taken;
    the rate rises over 6 % of them, then falls as a cosine. Nothing in a step waits for the GPU.

    `stream`: replay steps; the caller runs everything, evaluation too, within it. None: do not.
    """

    def __init__(
        self, learner: Learner, rows: Encoded, run: Run, stream: torch.cuda.Stream | None = None
    ) -> None:
        self._learner = learner
        self._batches = Batches(rows, learner.base.device)
        self._run = run
        self._stream = stream
        self._epoch = 0
        self._left: list[list[int]] = []  # batches of the epoch
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
        self.total = run.steps
        self.done = 0
        self.num_tokens = 0

    def take(self) -> Tensor:
        """One step; the mean loss of its batch, still on the device."""
        if not self._left:
            seed, epoch = self._run.seed, self._epoch
            self._left = self._batches.epoch(self._run.batch, seed=seed, epoch=epoch)[::-1]
            self._epoch += 1
        batch = self._batches.batch(self._left.pop())
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
    """Cross-entropy in nats, summed over the tokens of the answers."""
    logits = logits_at(base, hidden_states(base, batch.ids), batch.places)
    return functional.cross_entropy(
        logits.float(), batch.targets, reduction="sum", ignore_index=IGNORED
    )


def hidden_states(base: BaseModel, ids: Tensor) -> Tensor:
    """[rows * length, hidden]. Rows are padded at the right and attention is causal, so no position
    that counts sees the padding."""
    decoded = base.model.get_decoder()(
        input_ids=ids, attention_mask=_causal(ids, base.dtype), use_cache=False
    )
    flat: Tensor = decoded.last_hidden_state.flatten(0, 1)
    return flat


def logits_at(base: BaseModel, hidden: Tensor, places: Tensor) -> Tensor:
    """[places, vocabulary]."""
    logits: Tensor = base.model.get_output_embeddings()(hidden.index_select(0, places))
    return logits


def _causal(ids: Tensor, dtype: torch.dtype) -> Tensor:
    """[1, 1, length, length], to be added: given ready-made, so that transformers does not ask the
    GPU what the positions are, for which every step would wait."""
    length = ids.shape[1]
    lowest = torch.finfo(dtype).min
    return torch.full((1, 1, length, length), lowest, dtype=dtype, device=ids.device).triu(1)
