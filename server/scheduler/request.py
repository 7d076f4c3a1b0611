"""What the API hands to the serving loop, and what comes back. Knows no HTTP."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from adapters_store.manifest import AdapterRef
from server.engine.sequence import FinishReason, SamplingParams, TokenLogprob


@dataclass(frozen=True)
class Generation:
    """One request: a prompt, its adapter (None: the base model) and how to sample `n` answers.

    `prompt_param` and `length_param` are what the caller calls the prompt and the answer's largest
    length; refusals name them.
    """

    request_id: str
    owner: str
    prompt: tuple[int, ...]
    params: SamplingParams
    adapter: AdapterRef | None = None
    n: int = 1
    timeout_s: float = 600.0
    prompt_param: str = "prompt"
    length_param: str = "max_tokens"


class TokenPiece(NamedTuple):
    """A token with the text it showed; several tokens may show none until a character is whole."""

    token_id: int
    text: str
    logprob: TokenLogprob | None = None


@dataclass(slots=True)  # not frozen: one is made for each token, and that would double its cost
class TextDelta:
    """News of answer `index`: text ready to show, the tokens behind it, and perhaps its end.

    `text` never splits a character and never holds a stop string, nor the start of one that may
    yet complete. `cached_tokens`, told with the end, counts the prompt's tokens that earlier
    answers had computed. `error` is set when `finish` is ERROR or DEADLINE, or when the adapter
    could not be loaded.
    """

    index: int
    text: str = ""
    tokens: tuple[TokenPiece, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    cached_tokens: int = 0
    error: Exception | None = None


Listener = Callable[[TextDelta], None]
"""Called from the engine's thread; must return at once and never raise."""

Plain = tuple[int, str]
"""A token without a score, and the text that it shows, which is all of its own: most news are."""

Taker = Callable[[int, str], None]
"""Hears the plain tokens of one answer, as a listener hears its deltas."""


def taker_of(listener: Listener, index: int) -> Taker:
    """A listener may have a `taker(index)` for each of its answers, and so spare the time for an
    object a token, which takes longer than the rest of the way.
    """
    own: Callable[[int], Taker] | None = getattr(listener, "taker", None)
    return partial(_tell_plain, listener, index) if own is None else own(index)


def _tell_plain(listener: Listener, index: int, token_id: int, text: str) -> None:
    listener(TextDelta(index, text, (TokenPiece(token_id, text),)))


@dataclass(frozen=True)
class LoopStats:
    """A snapshot for /metrics and /health."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    by_adapter_running: dict[str, int] = field(default_factory=dict)
