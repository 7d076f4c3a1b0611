"""A seed gives the same tokens whatever else is in the batch."""

import random
from typing import Any

from tests.engine.driving import make_engine, make_sequence, random_prompt
from tests.models import VOCAB, tiny_model


def test_a_seed_gives_the_same_tokens_in_any_company() -> None:
    rng = random.Random(8)
    prompts = [random_prompt(rng, rng.randint(3, 40), VOCAB) for _ in range(8)]
    params: list[dict[str, Any]] = [
        {"temperature": rng.choice([0.7, 1.0, 1.5]), "top_p": rng.choice([0.8, 1.0]), "seed": i + 1}
        for i in range(8)
    ]
    engine = make_engine(tiny_model("llama"))
    alone = [engine.finish(make_sequence(i, prompts[i], **params[i])) for i in range(8)]
    mixed = [make_sequence(i, prompts[i], **params[i]) for i in range(8)]
    assert engine.finish_mixed(mixed, rng) > 0
    assert [it.output for it in mixed] == alone


def test_seeds_differ() -> None:
    engine = make_engine(tiny_model("llama"))
    answers = {
        tuple(engine.finish(make_sequence(0, [5, 6, 7], temperature=1.0, seed=seed)))
        for seed in range(1, 6)
    }
    assert len(answers) == 5


def test_any_whole_number_is_a_seed() -> None:
    engine = make_engine(tiny_model("llama"))
    for seed in (-1, 2**63, 2**80):
        assert len(engine.finish(make_sequence(0, [5], temperature=1.0, seed=seed))) == 12
