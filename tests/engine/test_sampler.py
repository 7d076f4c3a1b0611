"""The vectorised sampler against a plain one-row reference, and against the distribution."""

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine import sampler
from server.engine.sampler import uniform
from server.engine.sequence import Sequence
from tests.engine.driving import generate, make_engine, make_sequence
from tests.models import tiny_model


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[int | None]:
    tokens = sampler.sample(logits, sequences).tolist()
    return [None if token < 0 else token for token in tokens]


def reference_sample(logits: list[float], sequence: Sequence) -> int:
    """One row in plain Python, as the sampler's docstring puts it."""
    params, row = sequence.params, list(logits)
    counts = Counter(sequence.output)
    for token in {*sequence.prompt, *sequence.output}:
        penalty = params.repetition_penalty
        row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    for token, count in counts.items():
        row[token] -= params.frequency_penalty * count + params.presence_penalty
    for token, bias in params.logit_bias:
        row[token] += bias
    if params.temperature == 0:
        return row.index(max(row))
    best = max(row)
    weights = [math.exp((it - best) / params.temperature) for it in row]
    ranked = sorted(weights, reverse=True)[: params.top_k or None]
    least = ranked[-1]
    held, share = 0.0, params.top_p * sum(ranked)
    if params.top_p < 1:
        for weight in ranked:
            held += weight
            if held >= share:
                least = max(least, weight)
                break
    least = max(least, params.min_p)
    kept = [weight if weight >= least else 0.0 for weight in weights]
    position = uniform(sequence) * sum(kept)
    for token, weight in enumerate(kept):
        position -= weight
        if position < 0:
            return token
    raise AssertionError("the numbers do not add up")


def random_params(rng: random.Random, vocab: int) -> dict[str, Any]:
    """Any mix: each parameter is left alone half of the time."""
    choices: dict[str, Any] = {
        "temperature": rng.choice([0.0, 1e-9, 0.3, 1.0, 2.0]),
        "top_k": rng.choice([1, 3, vocab - 1, 10 * vocab]),
        "top_p": rng.choice([0.0, 0.3, 0.9, 0.999]),
        "min_p": rng.choice([0.01, 0.3, 1.0]),
        "presence_penalty": rng.uniform(-2, 2),
        "frequency_penalty": rng.uniform(-2, 2),
        "repetition_penalty": rng.uniform(0.5, 2),
        "logit_bias": tuple((rng.randrange(vocab), rng.uniform(-9, 9)) for _ in range(3)),
    }
    return {name: value for name, value in choices.items() if rng.random() < 0.5}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 9), st.sampled_from([5, 40, 700]))
def test_equals_the_reference(seed: int, rows: int, vocab: int) -> None:
    rng = random.Random(seed)
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (rows, vocab))).float()
    sequences = [
        make_sequence(
            row,
            [rng.randrange(vocab) for _ in range(rng.randint(1, 20))],
            **{"temperature": 1.0, **random_params(rng, vocab)},
        )
        for row in range(rows)
    ]
    for sequence in sequences:
        sequence.output = [rng.randrange(vocab) for _ in range(rng.randint(0, 20))]
    expected = [
        reference_sample(row, it) for row, it in zip(logits.tolist(), sequences, strict=True)
    ]
    assert sample(logits, sequences) == expected


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from([5, 40, 700]), st.booleans())
def test_an_id_without_a_token_is_never_drawn(seed: int, vocab: int, half: bool) -> None:
    """The row of the named tokens alone gives the same draw, whatever the others would weigh."""
    rng = random.Random(seed)
    nameless = sorted(rng.sample(range(vocab), rng.randint(1, vocab - 1)))
    named = [token for token in range(vocab) if token not in nameless]
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (4, vocab))).float()
    logits[:, nameless] += rng.choice([0.0, 50.0])
    logits = logits.bfloat16() if half else logits
    cuts: dict[str, Any] = {"temperature": 1.0, "top_k": 3, "top_p": 0.9, "min_p": 0.05}
    params = {name: value for name, value in cuts.items() if rng.random() < 0.6}
    biased: dict[str, Any] = {**params, "logit_bias": ((nameless[0], 100.0),)}
    whole = [make_sequence(row, [0], **biased, seed=row + 1) for row in range(4)]
    small = [make_sequence(row, [0], **params, seed=row + 1) for row in range(4)]
    ids = torch.tensor(nameless)
    drawn = sampler.sample(logits.clone(), whole, nameless=ids).tolist()
    assert set(drawn) <= set(named)
    if not params.get("temperature"):
        expected = sampler.sample(logits[:, named].clone(), small).tolist()
        assert drawn == [named[token] for token in expected]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_without_a_nameless_id_is_as_before(temperature: float) -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(3))
    logits[:, 256:] = -torch.inf
    sequences = [make_sequence(row, [0], temperature=temperature) for row in range(6)]
    expected = sampler.sample(logits.clone(), sequences)
    drawn = sampler.sample(logits.clone(), sequences, nameless=torch.arange(256, 300))
    assert torch.equal(drawn, expected)


def test_equal_tokens_are_kept_together() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    drawn = Counter(
        sample(logits.clone(), [make_sequence(0, [0], temperature=1.0, top_k=1, seed=seed)])[0]
        for seed in range(1, 300)
    )
    assert set(drawn) == {1, 2, 3}
    assert min(drawn.values()) > 60


def test_of_equal_best_tokens_greedy_takes_the_first() -> None:
    assert sample(torch.tensor([[0.0, 5.0, 5.0]]), [make_sequence(0, [0])]) == [1]


@pytest.mark.parametrize("flat", [False, True])
def test_top_p_beyond_the_head_of_a_large_vocabulary(flat: bool) -> None:
    """A flat distribution needs more tokens than the sampler looks at first."""
    vocab, rng = 5000, np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 0.01 if flat else 4, (4, vocab))).float()
    sequences = [
        make_sequence(row, [0], temperature=1.0, top_p=top_p, top_k=top_k, seed=row + 1)
        for row, (top_p, top_k) in enumerate([(0.5, 0), (0.95, 0), (0.9, 2000), (1.0, 3000)])
    ]
    expected = [
        reference_sample(row, it) for row, it in zip(logits.tolist(), sequences, strict=True)
    ]
    assert sample(logits, sequences) == expected


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    vocab, rows = 12, 6000
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 1, vocab)).float()
    sequences = [make_sequence(i, [0], temperature=temperature, seed=i + 1) for i in range(rows)]
    drawn = Counter(sample(logits.repeat(rows, 1), sequences))
    expected = (rows * (logits / temperature).double().softmax(-1)).tolist()
    chi_square = sum((drawn[i] - it) ** 2 / it for i, it in enumerate(expected))
    assert chi_square < 31.3  # 11 degrees of freedom: exceeded by chance once in a thousand


def test_draws_of_one_answer_are_independent() -> None:
    sequence = make_sequence(0, [0], temperature=1.0, seed=7)
    numbers = []
    for _ in range(4000):
        numbers.append(uniform(sequence))
        sequence.output.append(0)
    values = torch.tensor(numbers, dtype=torch.float64)
    assert abs(float(values.mean()) - 0.5) < 0.02
    assert float(torch.corrcoef(torch.stack((values[1:], values[:-1])))[0, 1].abs()) < 0.05
    assert values.min() >= 0 and values.max() < 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_gives_no_token(value: float, temperature: float) -> None:
    logits = torch.zeros(3, 8)
    logits[1] = value
    logits[2, 5] = 9.0
    sequences = [make_sequence(row, [0], temperature=temperature) for row in range(3)]
    first, second, third = sample(logits, sequences)
    assert second is None
    assert first is not None and third == 5


def test_half_precision_logits_are_drawn_in_float32() -> None:
    logits = torch.randn(1, 600, generator=torch.Generator().manual_seed(0)).bfloat16()
    sequence = make_sequence(0, [0], temperature=0.8, top_p=0.9, presence_penalty=1.0)
    assert sample(logits.clone(), [sequence]) == sample(logits.float(), [sequence])


def test_rows_that_ask_for_nothing_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> torch.Tensor:
        raise AssertionError("penalties were computed for rows that have none")

    monkeypatch.setattr("server.engine.sampler._counts", never)
    monkeypatch.setattr("server.engine.sampler._threshold", never)
    sequences = [make_sequence(0, [1]), make_sequence(1, [1], temperature=1.0)]
    assert None not in sample(torch.randn(2, 50), sequences)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_pending_token_counts_like_a_known_one(temperature: float) -> None:
    """Penalties and the place that the draw depends on take in what only the device knows."""
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(5))
    last = torch.tensor([9, 8, 7, 6])
    params: dict[str, Any] = {
        "temperature": temperature,
        "repetition_penalty": 1.6,
        "frequency_penalty": 0.8,
    }
    known = [make_sequence(row, [1, 9], **params) for row in range(4)]
    pending = [make_sequence(row, [1, 9], **params) for row in range(4)]
    for row in range(4):
        known[row].output = [3, int(last[3 - row])]
        pending[row].output, pending[row].pending, pending[row].source = [3], 1, 3 - row
    drawn = sampler.sample(logits.clone(), pending, last)
    assert torch.equal(drawn, sampler.sample(logits.clone(), known))


@pytest.mark.parametrize("vocab", [1, 255, 256, 257, 1000])
def test_the_ends_of_the_unit_interval_draw_the_outermost_tokens(vocab: int) -> None:
    weights = torch.zeros(2, -(-vocab // 256) * 256)
    weights[:, :vocab] = torch.rand(vocab, generator=torch.Generator().manual_seed(vocab)) + 0.1
    drawn = sampler._invert(weights, torch.tensor([0.0, 1 - 2.0**-52], dtype=torch.float64))
    assert drawn.tolist() == [0, vocab - 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_answer_ends_below_its_min_tokens(temperature: float, dtype: torch.dtype) -> None:
    """Tokens 0 and 2 are the best by far, whatever bias or penalty there is; both are ends."""
    logits = torch.tensor([[30.0, 1.0, 20.0, 0.0]] * 6, dtype=dtype)
    sequences = [
        make_sequence(row, [1], temperature=temperature, min_tokens=least, logit_bias=bias)
        for row, (least, bias) in enumerate(
            [(0, ()), (1, ()), (2, ((0, 100.0),)), (1, ()), (9, ())]
        )
    ]
    for sequence in sequences:
        sequence.ends = frozenset({0, 2, 4, 10**9, -1})  # some are no tokens of this model
    sequences[3].output = [1]
    sequences[4].ends = frozenset()
    sequences.append(make_sequence(5, [1], temperature=temperature, min_tokens=1))
    sequences[5].ends, sequences[5].pending = frozenset({0}), 1
    drawn = sampler.sample(logits, sequences, torch.tensor([1])).tolist()
    assert [token in (1, 3) for token in drawn] == [False, True, True, False, False, False]


def test_min_tokens_hold_for_the_answer_of_the_whole_engine() -> None:
    model = tiny_model("llama")
    plain = generate(model, [5, 6, 7], 12)
    engine = make_engine(model)
    sequences = [make_sequence(0, [5, 6, 7]), make_sequence(1, [5, 6, 7], min_tokens=12)]
    for sequence in sequences:
        sequence.ends = frozenset(plain[:1])
    engine.finish_mixed(sequences, random.Random(0))
    assert sequences[0].output == plain
    assert plain[0] not in sequences[1].output and len(sequences[1].output) == 12
