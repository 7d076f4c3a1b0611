"""How answers and references reach the scorers. Needs the extra `e2e`, and no Java."""

import pytest

scores = pytest.importorskip("benchmarks.claims.shown.scores")

REFERENCES = [
    ["The Mill is a cheap pub near the river.", "Near the river, The Mill is a cheap pub."],
    ["Zizzi is a family-friendly coffee shop."],
]


def test_any_of_the_references_gives_a_full_bleu_whatever_its_case() -> None:
    texts = ["near the river, the mill is a cheap pub.", REFERENCES[1][0]]
    assert scores.bleu(REFERENCES, texts) == pytest.approx(100)


def test_answers_belong_to_their_own_references() -> None:
    right = [references[0] for references in REFERENCES]
    for score in (scores.bleu, scores.nist):
        assert score(REFERENCES, right[::-1]) < score(REFERENCES, right) / 2
