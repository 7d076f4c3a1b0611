"""Sequences, their sampling parameters and what a step gives them. Knows no tensors, no HTTP."""

from collections import abc
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np

from server.bases.token_ids import unknown_token
from server.errors import InvalidRequest

_DRAWS_AT_ONCE = 64  # setting up a generator takes 10 us, however few numbers are read from it
_PHILOX_WORDS = 4  # of 64 bits, for each value of Philox's counter


class FinishReason(StrEnum):
    """Why a sequence ended, in the OpenAI API's words where it has one."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


RANGES: abc.Mapping[str, tuple[float, float]] = {
    "max_tokens": (0, 2**31),
    "min_tokens": (0, 2**31),
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 2**31),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 100.0),
    "logit_bias": (-100.0, 100.0),
    "top_logprobs": (0, 20),
}
"""The least and the largest value of each. Most are the OpenAI API's; the rest are vLLM's."""


def _within(name: str, value: float) -> None:
    low, high = RANGES[name]
    if not low <= value <= high:
        raise InvalidRequest(f"{name}={value} is not between {low} and {high}", param=name)


@dataclass(frozen=True)
class SamplingParams:
    """How a request samples its tokens.

    No end token and no stop ends an answer that has fewer than `min_tokens`. With `include_stop`,
    the text holds the stop string, or the token, that ended the answer.

    Raises:
        InvalidRequest: a value is out of range; `param` names it.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    include_stop: bool = False
    skip_special_tokens: bool = True
    top_logprobs: int | None = None  # None: no logprobs; k: the sampled token's and the k best
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        for name in RANGES.keys() - {"logit_bias", "top_logprobs"}:
            _within(name, getattr(self, name))
        _within("top_logprobs", self.top_logprobs or 0)
        for _, bias in self.logit_bias:
            _within("logit_bias", bias)
        if any(not text for text in self.stop):
            raise InvalidRequest("stop holds an empty string; leave it out", param="stop")

    @cached_property
    def changes_logits(self) -> bool:
        """True when penalties or biases change the logits before sampling."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1
            or self.logit_bias
        )


def check_token_ids(
    prompt: abc.Sequence[int], params: SamplingParams, vocab_size: int, *, param: str = "prompt"
) -> None:
    """Refuse token ids that the model does not have.

    Args:
        param: the field of the request that the prompt comes from.

    Raises:
        InvalidRequest: the prompt is empty, or an id of the prompt or of logit_bias is unknown.
    """
    if not prompt:
        raise InvalidRequest("the prompt is empty; give at least one token", param=param)
    wrong = unknown_token(prompt, vocab_size)
    if wrong is not None:
        raise InvalidRequest(
            f"the prompt has token {wrong}; this model's token ids are 0..{vocab_size - 1}",
            param=param,
        )
    for token, _ in params.logit_bias:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"logit_bias has token {token}; this model's token ids are 0..{vocab_size - 1}",
                param="logit_bias",
            )


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probabilities of one token under the model's raw distribution (temperature 1)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


class SeededDraws:
    """The uniform numbers in [0, 1) that draw an answer's tokens, one for each place of the answer.

    A number depends on the seed and the place alone. So a seed gives the same numbers whatever else
    is in the batch, and however often the sequence is computed again.
    """

    __slots__ = ("_first", "_key", "_numbers")

    def __init__(self, seed: int) -> None:
        self._key = seed % (1 << 64)  # a seed may be any whole number, and negative too
        self._first = 0
        self._numbers: list[float] = []

    def at(self, place: int) -> float:
        """The first word that Philox makes of the counter `place`, as a fraction."""
        if not 0 <= place - self._first < len(self._numbers):
            self._first = place
            generator = np.random.Philox(key=self._key, counter=place)
            bits = generator.random_raw(_DRAWS_AT_ONCE * _PHILOX_WORDS)[::_PHILOX_WORDS]
            # 52 bits: number * total is always below total.
            self._numbers = ((bits >> np.uint64(12)) * 2.0**-52).tolist()
        return self._numbers[place - self._first]


@dataclass(eq=False)
class Sequence:
    """One prompt and the answer growing behind it. The scheduler owns it, the engine reads it.

    `num_computed` counts the tokens whose keys and values are in the cache, or will be once the
    launched steps have run. Pre-emption puts it back to zero: prompt and answer so far are then
    computed again. `num_scored` counts the prompt positions whose logprobs were handed out;
    pre-emption keeps it, so none comes twice. `slot` is the adapter's place in the banks (0: the
    base model), held from admission until the sequence ends. `content` is the content hash of that
    adapter ("": the base); equal tokens under an equal hash have equal keys and values. `owner` and
    `cache_salt` say who may reuse them. `ends` are the tokens that end the answer.

    `pending` counts the answer's last tokens that launched steps sample and whose ids the host has
    not read yet. While there is one, `source` is its place among the tokens that the last launched
    step samples.

    `BlockPool` keeps the rest: `blocks`; `block_keys` of the first whole blocks; `num_shared`, the
    tokens in blocks that other sequences may reuse; `num_reused`, the tokens of the prompt that
    were reused before the first token of the answer.
    """

    seq_id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    ends: frozenset[int] = frozenset()
    slot: int = 0
    content: str = ""
    owner: str = ""
    cache_salt: str = ""
    output: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_scored: int = 1  # the first token of a prompt has no score
    blocks: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)
    num_shared: int = 0
    num_reused: int = 0
    finish: FinishReason | None = None
    pending: int = 0
    source: int = -1

    def __post_init__(self) -> None:
        self.draws = SeededDraws(self.seed)
        # With max_tokens=0 one token is still sampled, to learn that the logits are finite.
        self._most_tokens = len(self.prompt) + max(self.params.max_tokens, 1)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer, pending ones included."""
        return len(self.prompt) + len(self.output) + self.pending

    @property
    def num_known(self) -> int:
        """Tokens whose ids the host knows."""
        return len(self.prompt) + len(self.output)

    @property
    def may_end(self) -> bool:
        """Whether the next token that is sampled may be one of `ends`."""
        return len(self.output) + self.pending >= self.params.min_tokens

    @property
    def remaining(self) -> int:
        """Tokens of prompt and answer not yet computed; 1 while decoding."""
        return len(self.prompt) + len(self.output) + self.pending - self.num_computed

    @property
    def wants_steps(self) -> bool:
        """False when the pending token is the last that may be sampled."""
        return len(self.prompt) + len(self.output) + self.pending < self._most_tokens

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids of prompt and answer at positions start..stop-1; 0 for pending ones."""
        split = len(self.prompt)
        known = split + len(self.output)
        return [
            *self.prompt[start:stop],
            *self.output[max(start - split, 0) : max(stop - split, 0)],
            *[0] * (stop - max(start, known)),
        ]


class Chunk(NamedTuple):
    """Run the next `length` tokens of `sequence` in this step."""

    sequence: Sequence
    length: int


class StepOutput(NamedTuple):
    """What one step gave one sequence.

    `token_id` is None until the whole prompt is computed. `logprob` is set when the request asked
    for it. `prompt_logprobs` holds one entry for each prompt position that this chunk scored
    (position p is scored by the logits at p - 1; the first token of a prompt has none).
    `failure` says why the sequence cannot continue (its logits are not finite); there is no token
    then.
    """

    sequence: Sequence
    token_id: int | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    failure: str | None = None
