"""Stop strings that spell special tokens, and log-probabilities that end where the text does.

Random tokens and stop strings, held against a plain search in the text of all tokens so far.
"""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from server.api.completions.chat_completion import ChatShape
from server.api.completions.delivery import merged
from server.api.completions.replies import Transcript
from server.api.completions.text_completion import CompletionShape, Echo, _echo
from server.bases.tokenizer import ChatTokenizer
from server.engine import sequence as engine
from server.engine.sequence import SamplingParams, StepOutput, TokenLogprob
from server.scheduler.answer import Answer
from server.scheduler.request import CallbackListener, Generation, TextDelta
from server.scheduler.stop_strings import AnswerText
from server.scheduler.timing import AnswerTimes
from tests.bases.test_added_tokens import grown

KINDS = ("byte-level", "porch", "byte-fallback", "word-pieces", "metaspace")
NO_EOS: frozenset[int] = frozenset()


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> ChatTokenizer:
    return grown(request.param)


def heard(
    tokenizer: ChatTokenizer,
    ids: Sequence[int],
    stops: Sequence[str],
    eos: frozenset[int] = NO_EOS,
    **params: Any,
) -> list[TextDelta]:
    """What the listener of an answer of these tokens hears, to its end."""
    chosen = SamplingParams(max_tokens=len(ids), stop=tuple(stops), top_logprobs=1, **params)
    request = Generation("r", "o", (1,), chosen)
    listener = CallbackListener(lambda _: None)
    answer = Answer(
        request,
        0,
        0,
        engine.Sequence(0, request.prompt, chosen, seed=1, ends=eos | chosen.stop_token_ids),
        AnswerText(
            tokenizer.stream(skip_special=chosen.skip_special_tokens),
            chosen.stop,
            include_stop=chosen.include_stop,
        ),
        listener,
        listener.token_sink(0),
        AnswerTimes(0.0, 1.0),
    )
    deltas = []
    for token_id in ids:
        update = answer.take(StepOutput(answer.sequence, token_id, score(token_id)))
        assert isinstance(update, TextDelta)
        deltas.append(update)
        if update.finish is not None:
            return deltas
    raise AssertionError("the answer never ended")


def score(token_id: int) -> TokenLogprob:
    return TokenLogprob(token_id, -token_id / 1000, ((token_id, -token_id / 1000),))


def plainly(
    tokenizer: ChatTokenizer, ids: Sequence[int], stops: Sequence[str]
) -> tuple[str, str | None, list[int]]:
    """The text of the answer, the stop string that ended it, and where each token begins."""
    stream = tokenizer.stream()
    begins, text = [], ""
    spelled, shown = "", {0: 0}  # with special tokens; of each place between units: what is shown
    for token_id in ids:
        begins.append(len(text))
        units = [*stream.push(token_id)]
        text += "".join(units)
        spelt = str(tokenizer._tokenizer.convert_ids_to_tokens(token_id))
        is_special = token_id in tokenizer.special_ids
        units += [spelt] * (is_special and any(spelt in stop for stop in stops))
        for unit in units:
            before = shown[len(spelled)]
            spelled += unit
            shown[len(spelled)] = before + (not is_special)
        found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
        found += [
            (shown[at], stop)
            for stop in stops
            for at in shown
            if spelled.startswith(stop, at) and at + len(stop) in shown
        ]
        if found:
            at, stop = min(found)
            return text[:at], stop, begins
    return text + stream.flush(), None, begins


def random_stops(draw: random.Random, tokenizer: ChatTokenizer, ids: Sequence[int]) -> list[str]:
    """Parts of what is generated, with special tokens or without, and what never comes."""
    stops = ["never seen"]
    for _ in range(draw.randint(0, 3)):
        start = draw.randrange(len(ids))
        part = list(ids[start : start + draw.randint(1, 3)])
        text = tokenizer.decode(part, skip_special=draw.random() < 0.3)
        text = text if draw.random() < 0.6 else text[draw.randrange(3) :]
        if text and "\ufffd" not in text:
            stops.append(text)
    return stops


def random_case(draw: random.Random, tokenizer: ChatTokenizer) -> tuple[list[int], list[str]]:
    special = sorted(tokenizer.special_ids)
    few = [draw.randrange(len(tokenizer)) for _ in range(6)]
    few += tokenizer.encode(draw.choice(["ab abab", "你好 é", "👩‍👩‍👧 the cat"]))
    ids = [draw.choice(special if draw.random() < 0.25 else few) for _ in range(25)]
    return ids, random_stops(draw, tokenizer, ids)


def test_random_stops_end_random_answers_where_a_plain_search_does(
    tokenizer: ChatTokenizer,
) -> None:
    draw = random.Random(11)
    ended = with_special = 0
    for _ in range(120):
        ids, stops = random_case(draw, tokenizer)
        deltas = heard(tokenizer, ids, stops)
        text, stop, _ = plainly(tokenizer, ids, stops)
        said = "".join(delta.text for delta in deltas)
        if stop is not None and said != text:  # a character cut short before a special token
            assert said == text + "\ufffd"
            said = text
        assert (said, deltas[-1].stop_reason) == (text, stop)
        ended += stop is not None
        with_special += "<|" in (stop or "")
    assert ended > 30
    assert with_special > 5


@pytest.mark.parametrize("seed", range(3))
def test_scores_end_where_the_text_does_streamed_or_not(
    tokenizer: ChatTokenizer, seed: int
) -> None:
    draw = random.Random(seed)
    echo = Echo((1, 2), ("né", "x"))
    for _ in range(40):
        ids, stops = random_case(draw, tokenizer)
        deltas = heard(tokenizer, ids, stops)
        transcript = Transcript()
        for delta in deltas:
            transcript.add(merged(0, [delta]))
        assert transcript.num_tokens == len(deltas)
        cut = transcript.stop_reason is not None
        begins = plainly(tokenizer, ids, stops)[2]
        assert len(begins) == len(deltas)
        shown = [at for at in begins if not cut or at < len(transcript.text)]

        whole = CompletionShape(tokenizer, logprobs=True, echoes=[echo]).whole(0, transcript)
        scores: Any = whole["logprobs"]
        assert whole["text"] == "néx" + transcript.text
        assert scores["text_offset"] == [0, 2, *(3 + at for at in shown)]
        assert scores["tokens"][2:] == [tokenizer.token_text(it) for it in ids[: len(shown)]]
        assert scores["token_logprobs"][2:] == [-it / 1000 for it in ids[: len(shown)]]
        assert len(scores["top_logprobs"]) == len(shown) + 2

        shape = CompletionShape(tokenizer, logprobs=True, echoes=[echo])
        chunks: list[Any] = []
        for delta in deltas:
            chunks += shape.chunks(0, delta)
            length = len("".join(chunk["text"] for chunk in chunks))
            told = [at for chunk in chunks for at in chunk["logprobs"]["text_offset"]]
            assert delta.finish or all(at < length for at in told)
        assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
        for name, values in scores.items():
            assert [it for chunk in chunks for it in chunk["logprobs"][name]] == values

        chat: Any = ChatShape(tokenizer, logprobs=True).whole(0, transcript)
        entries = chat["logprobs"]["content"]
        assert [bytes(entry["bytes"]) for entry in entries] == [
            tokenizer.token_bytes(it) for it in ids[: len(shown)]
        ]
        streaming = ChatShape(tokenizer, logprobs=True)
        pieces: list[Any] = [it for delta in deltas for it in streaming.chunks(0, delta)]
        streamed = [chunk["logprobs"] for chunk in pieces if chunk["logprobs"]]
        assert [entry for each in streamed for entry in each["content"]] == entries


@pytest.mark.parametrize("seed", range(2))
def test_a_stop_string_may_be_shown_with_its_scores(tokenizer: ChatTokenizer, seed: int) -> None:
    draw = random.Random(seed)
    ended = 0
    for _ in range(60):
        ids, stops = random_case(draw, tokenizer)
        plain, deltas = Transcript(), heard(tokenizer, ids, stops, include_stop=True)
        for delta in heard(tokenizer, ids, stops):
            plain.add(merged(0, [delta]))
        transcript = Transcript()
        for delta in deltas:
            transcript.add(merged(0, [delta]))
        stop = plain.stop_reason
        assert transcript.stop_reason == stop
        assert transcript.text == plain.text + str(stop or "")
        ended += stop is not None

        whole: Any = CompletionShape(tokenizer, logprobs=True).whole(0, transcript)
        shown = whole["logprobs"]["tokens"]
        assert shown == [tokenizer.token_text(it) for it in ids[: len(shown)]]
        assert len(shown) == len(deltas), "a token of the stop string has no score"
        shape = CompletionShape(tokenizer, logprobs=True)
        chunks: list[Any] = [chunk for delta in deltas for chunk in shape.chunks(0, delta)]
        assert "".join(chunk["text"] for chunk in chunks) == transcript.text
        assert [it for chunk in chunks for it in chunk["logprobs"]["tokens"]] == shown
    assert ended > 10


def test_special_tokens_may_be_shown() -> None:
    tokenizer = grown("byte-level")
    start, end = special(tokenizer, "<|im_start|>"), special(tokenizer, "<|im_end|>")
    ids = [*tokenizer.encode("a"), start, *tokenizer.encode("b"), end]
    for fields, text in [
        ({}, "ab"),
        ({"skip_special_tokens": False}, "a<|im_start|>b"),
        ({"include_stop": True}, "ab"),
        ({"skip_special_tokens": False, "include_stop": True}, "a<|im_start|>b<|im_end|>"),
    ]:
        deltas = heard(tokenizer, ids, [], frozenset({end}), **fields)
        assert "".join(delta.text for delta in deltas) == text
        assert deltas[-1].finish == "stop"
    shown = heard(tokenizer, ids, ["t|>b"], skip_special_tokens=False)
    assert "".join(delta.text for delta in shown) == "a<|im_star"


def test_a_prompt_is_echoed_as_it_was_sent() -> None:
    tokenizer = grown("byte-level")
    sent = "<|im_start|>né<|im_end|>"
    ids = tuple(tokenizer.encode(sent))
    for text in (sent, None):
        echo = _echo(tokenizer, text, ids)
        assert echo.text == sent
        for at, token_id, _ in echo.scored(None):
            assert sent[at:].encode().startswith(tokenizer.token_bytes(token_id)) or at == 13
    cut = _echo(tokenizer, None, tuple(tokenizer.encode("é")[:1]))
    assert cut.text == "\ufffd"


def special(tokenizer: ChatTokenizer, text: str) -> int:
    token_id = tokenizer._tokenizer.convert_tokens_to_ids(text)
    assert isinstance(token_id, int) and token_id in tokenizer.special_ids
    return token_id


@pytest.mark.parametrize(
    ("stops", "text", "reason"),
    [
        (["<|im_start|>"], "ab", "<|im_start|>"),
        (["b<|im_start|>"], "a", "b<|im_start|>"),
        (["<|im_start|>c"], "ab", "<|im_start|>c"),
        (["b<|im_start|>c", "c<|im_end|>"], "a", "b<|im_start|>c"),
        (["c<|im_end|>"], "ab", "c<|im_end|>"),
        (["<|im_end|>"], "abc", "<|im_end|>"),
        (["<|im_start|><|im_end|>"], "abc", None),
        (["bc"], "a", "bc"),  # as the text shows it
        (["im_start", "<|", "|>", "<|im_start|", "|im_start|>c"], "abc", None),  # parts of one
    ],
)
@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_a_stop_string_may_hold_special_tokens(
    kind: str, stops: list[str], text: str, reason: str | None
) -> None:
    tokenizer = grown(kind)
    a, b, c = (tokenizer.encode(letter)[-1] for letter in "abc")
    start, end = special(tokenizer, "<|im_start|>"), special(tokenizer, "<|im_end|>")
    for eos in (frozenset({end}), NO_EOS):
        deltas = heard(tokenizer, [a, b, start, c, end], stops, eos)
        assert "".join(delta.text for delta in deltas) == text
        assert deltas[-1].stop_reason == reason


def test_a_stop_string_that_the_model_spells_out_still_matches() -> None:
    tokenizer = grown("porch")
    ids = [it for char in "ab<|im_end|>c" for it in tokenizer.encode(char)]
    assert not set(ids) & tokenizer.special_ids
    deltas = heard(tokenizer, ids, ["<|im_end|>"])
    assert "".join(delta.text for delta in deltas) == "ab"


def test_a_stop_token_is_the_reason_also_where_a_stop_string_spells_it() -> None:
    tokenizer = grown("byte-level")
    start = special(tokenizer, "<|im_start|>")
    ids = [*tokenizer.encode("ab"), start]
    deltas = heard(tokenizer, ids, ["b<|im_start|>"], stop_token_ids=frozenset({start}))
    assert "".join(delta.text for delta in deltas) == "a"
    assert deltas[-1].stop_reason == start
