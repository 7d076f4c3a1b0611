"""Estimate what a job will take, before it is queued. Reads no weights and runs no model."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from adapters_store.manifest import Manifest
from server.adapters.inspecting.counts import BYTES_AT_REST, count
from server.adapters.learning.targets import resolve_targets
from server.adapters.methods.registry import method_named
from server.bases.answer_ends import AnswerEnds
from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.errors import InvalidDataset, LineProblem
from server.jobs.files.dataset_warnings import dataset_warnings
from server.jobs.files.datasets import Dataset
from server.jobs.files.rendered_example import RenderedExample
from server.jobs.queue import continuing
from server.jobs.queue.job_estimate import JobEstimate
from server.jobs.queue.train_options import TrainOptions
from server.training.job.start import adapter_options, asked_by
from server.training.run.batches import held_out, steps_per_epoch
from server.training.run.defaults import TrainPlan, check_early_stopping, plan_for
from server.training.run.examples import LineEncoder, build_examples
from server.training.run.rendered_examples import rendered

_TOKENIZED_LINES = 1000  # of a file, at most; the worker tokenizes all of them
_HEADER_BYTES = 1500
_HEADER_BYTES_PER_TENSOR = 110  # its name, shape and place, and its target's name
_FLOPS_PER_PARAMETER = 4  # of one token: forward, and backward through frozen weights
# What such a device reaches on small batches: a guess until this server has trained a job.
_FLOPS_PER_S = {"cpu": 2e10, "cuda": 5e13}


@dataclass(frozen=True, eq=False)
class JobEstimator:
    """Reads files as training does, without training.

    `max_rank` is the largest that is served. `speed` gives the trained tokens per second of earlier
    jobs, if there were any.
    """

    base: BaseModel
    tokenizer: ChatTokenizer
    max_rank: int
    speed: Callable[[], float | None]

    def estimate(
        self,
        train: Dataset,
        valid: Dataset | None,
        options: TrainOptions,
        start: tuple[str, Manifest] | None = None,
    ) -> JobEstimate:
        """Estimate a job.

        Args:
            start: the adapter to continue, by name and header.

        Raises:
            InvalidDataset: lines that are too long, that have tokens which the base lacks, or that
                the chat template refuses. Of a large file, the longest lines, those with the text
                of such a token, and some of the others are checked.
            InvalidRequest: targets that the base lacks, or that contradict `start`.
        """
        plan = plan_for(options, seed=0, max_rank=self.max_rank, lines=len(train))
        parameters, tensors = self._size(plan, options, start)
        tokenizer = asked_by(self.tokenizer, None if start is None else start[1])
        ends = AnswerEnds.of(self.base, tokenizer)
        lengths, counted = self._lengths(train, "training_file", tokenizer)
        if valid is not None:
            self._lengths(valid, "validation_file", tokenizer)
        split = 0 if valid else len(held_out(len(train), plan.validation_split, seed=plan.seed))
        check_early_stopping(plan, len(valid) if valid else split)
        share = (len(train) - split) / counted
        tokens = round(sum(lengths) * len(train) / counted)
        trained = round(sum(lengths) * share) * plan.n_epochs
        speed = self.speed()
        return JobEstimate(
            examples=len(train),
            counted=counted,
            tokens=tokens,
            longest=max(lengths, default=0),
            n_epochs=plan.n_epochs,
            batch_size=plan.batch_size,
            steps=steps_per_epoch(round(len(lengths) * share), plan.batch_size) * plan.n_epochs,
            trained_tokens=trained,
            seconds=math.ceil(trained / (speed or self._guess())),
            measured=speed is not None,
            parameters=parameters,
            adapter_bytes=parameters * BYTES_AT_REST
            + tensors * _HEADER_BYTES_PER_TENSOR
            + _HEADER_BYTES,
            warnings=(
                *dataset_warnings(train, valid, reasoning=tokenizer.reads("reasoning_content")),
                *ends.warnings(chat=train.chat),
            ),
        )

    def problems(self, dataset: Dataset, param: str) -> Sequence[LineProblem]:
        """The lines that `estimate` refuses."""
        try:
            self._lengths(dataset, param, asked_by(self.tokenizer, None))
        except InvalidDataset as error:
            return error.problems
        return ()

    def renderer(
        self, start: tuple[str, Manifest] | None = None
    ) -> Callable[[Mapping[str, object]], Sequence[RenderedExample]]:
        """What shows the examples of checked lines, as a job with this start trains on them. It
        raises InvalidRequest for a line that such a job refuses."""
        tokenizer = asked_by(self.tokenizer, None if start is None else start[1])
        return partial(rendered, LineEncoder.of(self.base, tokenizer))

    def _size(
        self, plan: TrainPlan, options: TrainOptions, start: tuple[str, Manifest] | None
    ) -> tuple[int, int]:
        """How many parameters are trained, and in how many tensors."""
        base = self.base
        if start is None:
            text = {name: str(value) for name, value in adapter_options(plan, base).items()}
            method, rank = method_named(plan.method, text), plan.rank
            targets = resolve_targets(base, plan.targets)
        else:
            name, manifest = start
            if options.targets is not None:
                continuing.check_targets(name, manifest, resolve_targets(base, options.targets))
            method = method_named(manifest.method, manifest.options)
            rank, targets = manifest.rank, manifest.targets
        vectors = sum(len(method.shapes(base.targets[path], rank)) for path in targets)
        return count(method, base, targets, rank).parameters, vectors

    def _lengths(
        self, dataset: Dataset, param: str, tokenizer: ChatTokenizer
    ) -> tuple[list[int], int]:
        """Tokens of the examples of some lines, and how many lines those are."""
        base = self.base
        some, doubtful = _tokenized_lines(
            dataset, base.max_context, tokenizer.texts_from(base.vocab_size)
        )
        indices = sorted({*some, *doubtful})
        records = [dataset.records[index] for index in indices]
        encoded = build_examples(records, LineEncoder.of(base, tokenizer), param=param)
        lengths = [
            len(example.tokens) - 1
            for index, examples in zip(indices, encoded, strict=True)
            if index in some
            for example in examples
        ]
        return lengths, len(some)

    def _guess(self) -> float:
        flops = _FLOPS_PER_S.get(self.base.device.type, _FLOPS_PER_S["cpu"])
        weights = sum(parameter.numel() for parameter in self.base.model.parameters())
        return flops / (_FLOPS_PER_PARAMETER * weights)


def _tokenized_lines(
    dataset: Dataset, max_context: int, unknown: Sequence[str]
) -> tuple[range, list[int]]:
    """Indices of lines spread over the file, and of others that may be bad: too long, for a token
    is at least a byte; with an `unknown` text, whose token the base lacks; or the first of a kind
    of chat, which the template may refuse."""
    if len(dataset) <= _TOKENIZED_LINES:
        return range(len(dataset)), []
    some = range(0, len(dataset), math.ceil(len(dataset) / _TOKENIZED_LINES))
    spelled = [re.escape(json.dumps(text, ensure_ascii=False)[1:-1]) for text in unknown]
    pattern = re.compile("|".join(spelled) or "(?!)")  # nothing matches the latter
    sizes: dict[int, int] = {}
    odd: list[int] = []
    kinds: dict[object, int] = {}
    for index, (_, record) in enumerate(dataset.records):
        text = json.dumps(record, ensure_ascii=False)
        sizes[index] = len(text.encode())
        if len(odd) < _TOKENIZED_LINES and pattern.search(text):
            odd.append(index)
        if len(kinds) < _TOKENIZED_LINES:
            kinds.setdefault(_kind(record), index)
    long = [index for index, size in sizes.items() if size > max_context and index not in some]
    return some, [
        *sorted(long, key=lambda index: sizes[index])[-_TOKENIZED_LINES:],
        *odd,
        *kinds.values(),
    ]


def _kind(record: Mapping[str, object]) -> object:
    """What chat templates look at: who follows whom, and the fields of messages."""
    messages = record.get("messages")
    chat = messages if isinstance(messages, Sequence) else ()
    roles = ["", *(message["role"] for message in chat)]
    return frozenset(pairwise(roles)), frozenset(map(frozenset, chat)), "tools" in record
