"""What the API hands to the serving loop, and what comes back. Knows no HTTP."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import NamedTuple, Protocol

from adapters_store.manifest import AdapterRef
from server.engine.sequence import FinishReason, SamplingParams, TokenLogprob


@dataclass(frozen=True)
class Generation:
    """One request: a prompt, its adapter (None: the base model) and how to sample `n` answers.

    `turn_ends` are tokens that end its answers besides the base's end tokens. `prompt_param` and
    `length_param` are what the caller calls the prompt and the answer's largest length; refusals
    name them. `weight` is the owner's share beside others' in `Turns`. Keys and values in the cache
    are shared among requests with an equal `cache_salt` only.
    """

    request_id: str
    owner: str
    prompt: tuple[int, ...]
    params: SamplingParams
    adapter: AdapterRef | None = None
    n: int = 1
    turn_ends: frozenset[int] = frozenset()
    timeout_s: float = 600.0
    prompt_param: str = "prompt"
    length_param: str = "max_tokens"
    weight: float = 1.0
    cache_salt: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"the weight {self.weight} is not above 0 and finite: give another")


class TokenPiece(NamedTuple):
    """A token with the text it showed; several tokens may show none until a character is whole."""

    token_id: int
    text: str
    logprob: TokenLogprob | None = None


@dataclass(slots=True)  # not frozen: that would double the cost of making one
class TextDelta:
    """An update of answer `index`: text ready to show, its tokens, and perhaps the answer's end.

    `text` never splits a character and never holds a stop string, nor the start of one that may
    yet complete. `cached_tokens` comes with the end: how many of the prompt's tokens earlier
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


PlainToken = tuple[int, str]
"""The id of a token without scores, and its text, which is shown at once and whole. Most are so."""

TokenSink = Callable[[int, str], object]
"""Takes the id and the text of one plain token."""


class Listener(Protocol):
    """Hears the answers to one request.

    `hear`, the sinks and `flush` run on the thread that has the tokens: the serving loop's, or the
    one that reads the messages of an engine's process. They must return at once. An answer whose
    listener raises is cancelled by the loop; from an engine's process the fault is only logged.
    """

    def hear(self, update: TextDelta) -> None:
        """The first token of an answer, its end, and each token that is not plain."""

    def token_sink(self, index: int) -> TokenSink:
        """What takes the further plain tokens of answer `index`: without an object for each."""

    @property
    def flush(self) -> Callable[[], None]:
        """Called after each step; a listener may wait for it to pass on what it heard.

        Listeners with an equal `flush` share one call. It is called for as long as the loop runs,
        so share one function rather than make one for each listener.
        """


class CallbackListener:
    """A listener that calls one function with everything, plain tokens too."""

    def __init__(self, callback: Callable[[TextDelta], None]) -> None:
        self.hear, self.flush = callback, _nothing

    def token_sink(self, index: int) -> TokenSink:
        hear = self.hear
        return lambda token_id, text: hear(TextDelta(index, text, (TokenPiece(token_id, text),)))


def _nothing() -> None:
    """Nobody waits for the end of a step."""


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of the engines' devices: of the weights, of the whole room for keys and values and for
    adapters' vectors, and of the matrices that adapters read. `total` and `free` are the devices'
    own; 0: they do not tell. `devices` are their names."""

    devices: tuple[str, ...] = ()
    weights: int = 0
    kv: int = 0
    adapters: int = 0
    matrices: int = 0
    total: int = 0
    free: int = 0

    def __add__(self, other: "DeviceMemory") -> "DeviceMemory":
        """Of two engines together."""
        sums = (getattr(self, it.name) + getattr(other, it.name) for it in fields(self))
        return DeviceMemory(*sums)


@dataclass(frozen=True)
class LoopStats:
    """A snapshot for /metrics, /health and the console."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    by_adapter_running: dict[str, int] = field(default_factory=dict)
    memory: DeviceMemory = DeviceMemory()
