"""Patterns of modules: they mean what PEFT means by them, and none of them takes long."""

import random
import time

import pytest
from peft.utils.other import get_pattern_key

from adapters_store.peft import patterns
from adapters_store.peft.patterns import MAX_EXPRESSIONS, MAX_PATTERNS, numbers_by_module
from adapters_store.store_errors import InvalidCheckpoint

LINEARS = [
    *(f"self_attn.{x}_proj" for x in "qkvo"),
    *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
]
PATHS = [f"model.layers.{layer}.{linear}" for layer in (0, 1, 10, 11, 25) for linear in LINEARS]
MANY = [f"model.layers.{layer}.{linear}" for layer in range(80) for linear in LINEARS]


def found(keys: list[str], paths: list[str] = PATHS) -> dict[str, float]:
    return numbers_by_module("rank_pattern", {key: i for i, key in enumerate(keys)}, paths, -1)


def as_peft(keys: list[str]) -> dict[str, float]:
    chosen = {path: get_pattern_key(keys, path) for path in PATHS}
    return {path: keys.index(key) if key in keys else -1 for path, key in chosen.items()}


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("q_proj", "model.layers.0.q_proj", True),
        ("q_proj", "model.layers.0.mq_proj", False),
        ("layers.0.q_proj", "model.layers.0.q_proj", True),
        ("^model.layers.0.q_proj", "model.layers.0.q_proj", True),
        (r"layers\.\d.q_proj", "model.layers.7.q_proj", True),
        (r".*\.(0|1)\..*q_proj", "model.layers.1.q_proj", True),
        ("q", "model.layers.0.q_proj", False),
        (r".*layers\.(0|1|2)\..*_proj", "model.layers.2.q_proj", True),
        (r"layers\.\d+\.self_attn\.[qk]_proj", "model.layers.12.self_attn.k_proj", True),
        (r"(layers\.[0-9]{1,2}\.)+(q|k)_proj", "model.layers.12.k_proj", True),
        (r"(?:.*\.)*q_proj", "model.layers.0.q_proj", True),
        (r"(?i:LAYERS)\.0\.q_proj", "model.layers.0.q_proj", True),
        ("a)|(model.*", "model.layers.0.q_proj", True),
    ],
)
def test_a_pattern_matches_the_end_of_a_path(pattern: str, path: str, matches: bool) -> None:
    assert found(["other", pattern], [path]) == {path: 1 if matches else -1}


def test_the_first_pattern_that_matches_counts_in_any_number() -> None:
    exact = [f"layers.{layer}.{linear}" for layer in range(30) for linear in LINEARS]
    keys = [*exact[:100], "v_proj", *exact[100:], "down_proj"]
    assert found(keys) == as_peft(keys)
    assert found(["proj.*", ".*"]) == dict.fromkeys(PATHS, 1)


class TestAgainstPeft:
    def piece(self, draw: random.Random, depth: int) -> str:
        literals = ["q", "_proj", "layers", "1", "0", r"\.", ".", "mlp", "self_attn", "model", "up"]
        classes = [r"\d", r"\w", r"\D", r"\W", r"\S", "[a-z]", "[^.]", "[0-9_]", "[qkvo]", "^", "$"]
        kind = draw.randrange(8 if depth else 3)
        if kind < 2:
            return draw.choice(literals)
        if kind == 2:
            return draw.choice(classes)
        inner = "".join(self.piece(draw, depth - 1) for _ in range(draw.randint(1, 3)))
        if kind < 5:
            group = f"{draw.choice(['(', '(?:'])}{inner})"
            return group + draw.choice(["*", "+", "?", "{0,2}", "{2}", "{1,}", "*?", "+?", ""])
        if kind < 7:
            return f"({inner}|{self.piece(draw, depth - 1)})"
        return inner

    def near(self, draw: random.Random) -> str:
        """The end of a real path, some of its parts written otherwise."""
        parts = draw.choice(PATHS).split(".")[draw.randrange(3) :]
        other = [r"\w+", "[^.]+", ".*", r"\d+", "[01]", "({}|x)", "(?:{})+", "{}?", "x?{}"]
        written = [part if draw.random() < 0.6 else draw.choice(other) for part in parts]
        dots = (draw.choice([".", r"\."]) for _ in parts)
        return "".join(
            dot + text.replace("{}", part)
            for dot, text, part in zip(dots, written, parts, strict=True)
        ).removeprefix("\\")[1:]

    def test_random_patterns(self) -> None:
        draw, hits = random.Random(3), 0.0
        for _ in range(40):
            keys = ["".join(self.piece(draw, 2) for _ in range(3)) for _ in range(10)]
            keys = [key for key in keys if len(key) < 60] + [self.near(draw) for _ in range(10)]
            keys = [*dict.fromkeys(keys)]
            draw.shuffle(keys)
            for key in keys:  # also where an earlier one would hide it
                assert found([key]) == as_peft([key]), key
                hits += max(found([key]).values()) + 1
            assert found(keys) == as_peft(keys)
        assert hits > 100  # else nothing was compared with nothing


@pytest.mark.parametrize(
    "pattern", [r"(a+)+$", r"(a|a)*b", r"(.*)*x", r"(\w+\.?)+!", "a*b*c*d*e*", r"([a-z_.0-9]+)*$!"]
)
def test_what_backtracks_for_ever_elsewhere_is_served(pattern: str) -> None:
    began = time.thread_time()
    assert set(found([pattern], [*MANY, "a" * 60, "a.b_" * 60]).values()) <= {-1, 0}
    assert time.thread_time() - began < 1


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"(?<=layers\.)0", r"\(\?<=.*look-arounds.*module paths"),
        ("(?=q)q_proj", r"\(\?="),
        ("(?!q).*_proj", r"\(\?!"),
        (r"(q)_\1", "back-references"),
        (r"(q)(k)(v)(a)(b)(c)(d)(e)_\10", "back-references"),
        ("(?P<x>q)(?P=x)", r"\(\?P"),
        ("(?>q)_proj", r"\(\?>"),
        ("q++", r"\+\+"),
        ("q{1001}", "repetition size"),
        ("(q{100}){100}", "repetition size"),
        ("q{,2}_proj", r"'\{,n\}'"),
        ("[[:alpha:]]_proj", "class"),
        (r"q_proj\Z", r"\\Z"),
        ("(?x) q_proj", r"\(\?x"),
        ("(q|k", r"missing \)"),
        ("*", "repetition"),
        ("\ud800", "surrogate"),
        ("x" * 300, "300 characters, over the 256"),
        ("(" * 5000, "5000 characters"),
        (r"(\pL|\pN|\pS){900}", "too large"),
    ],
)
def test_what_cannot_be_matched_is_refused_by_name(
    pattern: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidCheckpoint, match=f"^alpha_pattern has .*{said}") as refusal:
        numbers_by_module("alpha_pattern", {"q_proj": 4, pattern: 1}, PATHS, 8)
    assert repr(pattern)[1:20] in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_a_refused_pattern_is_refused_wherever_it_stands() -> None:
    """Also behind one that matches every path."""
    with pytest.raises(InvalidCheckpoint, match="look-arounds"):
        found([".*", *(f"layers.{n}" for n in range(100)), "(?!q)"])


def test_what_is_too_large_together_is_refused() -> None:
    large = [rf"(\pL|\pN|\pS){{{n}}}" for n in range(3, 19)]
    assert set(found(large[:1]).values()) == {-1}
    with pytest.raises(InvalidCheckpoint, match=r"^rank_pattern has .* too much memory, .*pL"):
        found(large)


def test_their_number_is_bounded() -> None:
    with pytest.raises(InvalidCheckpoint, match=f"has {MAX_PATTERNS + 1} patterns, over the"):
        found([f"layers.{n}" for n in range(MAX_PATTERNS + 1)])
    with pytest.raises(InvalidCheckpoint, match=f"{MAX_EXPRESSIONS + 1} regular expressions"):
        found([rf"layers\.{n}.*" for n in range(MAX_EXPRESSIONS + 1)])


def test_the_most_that_is_accepted_takes_seconds() -> None:
    paths = [f"model.layers.{n}.mlp.experts.{n}.down_proj" for n in range(MAX_PATTERNS - 64)]
    slow = "({})*x".format("|".join(f"{c}.*" for c in "modelayrs.0123456789ftnqkvwup_" * 2))
    began = time.thread_time()
    assert set(found(paths, MANY).values()) == {-1}
    assert set(found([f"{slow}{n}" for n in range(MAX_EXPRESSIONS)], MANY).values()) == {-1}
    assert time.thread_time() - began < 8  # 1.5 on an idle core


def test_running_out_of_memory_is_no_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """RE2 only prints that its automaton found no room, and then says that nothing matches."""

    class Full:
        def Match(self, path: str) -> None:
            return None

    monkeypatch.setattr(patterns, "_matcher", lambda field, keys: Full())
    with pytest.raises(InvalidCheckpoint, match="too much memory"):
        found(["q_proj"])
