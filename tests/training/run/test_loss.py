"""The lean loss against the plain one: all logits of each example alone, without padding."""

import random

import pytest
import torch
from torch.nn import functional

from server.bases.model import BaseModel
from server.training.run.examples import Example
from server.training.run.loss import ScoreSums, counted_losses
from tests.models import KINDS, VOCAB, Kind, tiny_model


def make_example(draw: random.Random, length: int) -> Example:
    tokens = tuple(draw.randrange(VOCAB) for _ in range(length))
    counts = [False, *(draw.random() < 0.5 for _ in range(length - 2)), True]
    return Example(tokens, tuple(counts))


def plain_loss(base: BaseModel, example: Example) -> tuple[float, int]:
    tokens = torch.tensor([example.tokens])
    logits = base.model(input_ids=tokens).logits[0, :-1]
    losses = functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    hits = logits.argmax(-1) == tokens[0, 1:]
    counts = torch.tensor(example.counts[1:])
    return losses[counts].sum().item(), int(hits[counts].sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(2,), (9, 9, 9), (3, 40, 17, 2)])
def test_loss_equals_the_plain_one(kind: Kind, lengths: tuple[int, ...]) -> None:
    base = BaseModel.of(tiny_model(kind), kind)
    draw = random.Random(str(lengths))
    examples = [make_example(draw, length) for length in lengths]
    with torch.no_grad():
        losses, hits = counted_losses(base, examples)
        plain = [plain_loss(base, example) for example in examples]
    targets = [example.num_targets for example in examples]
    for mine, hit, (loss, right) in zip(
        losses.split(targets), hits.split(targets), plain, strict=True
    ):
        assert mine.sum().item() == pytest.approx(loss, rel=1e-5)
        assert hit.sum().item() == right


def test_the_head_reads_counted_positions_only() -> None:
    base = BaseModel.of(tiny_model("llama"), "llama")
    shapes: list[torch.Size] = []
    head = base.model.get_output_embeddings()
    watch = head.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    example = Example(tuple(range(20)), tuple(i > 15 for i in range(20)))
    counted_losses(base, [example, example])
    watch.remove()
    assert [shape[1] for shape in shapes] == [8]
    assert not head._forward_pre_hooks


def test_sums_are_means_over_tokens_not_over_parts() -> None:
    sums = ScoreSums()
    sums.add(torch.tensor([3.0]), torch.tensor([True]))
    sums.add(torch.full((7,), 1 / 7), torch.tensor([True] * 2 + [False] * 5))
    score = sums.score()
    assert score.loss == pytest.approx(0.5)
    assert score.accuracy == 0.375
