"""What the API's process and an engine's process say to each other. Knows no sockets.

Tokens make up nearly all of it: the plain ones of a message travel as three columns, which takes a
twentieth of the time that pickling their objects does (decision 14).
"""

from dataclasses import dataclass, field

from server.scheduler.request import Generation, TextDelta


@dataclass(frozen=True)
class EngineFacts:
    """What an engine that is ready tells of itself. `device` is a torch device's type."""

    base_name: str
    fingerprint: str
    device: str
    dtype: str
    max_context: int
    max_answers: int
    slots: int


@dataclass(frozen=True)
class Submit:
    """Answer a request; its n answers are called `first`, `first + 1`, ..."""

    first: int
    request: Generation


@dataclass(frozen=True)
class Cancel:
    """Stop the answers of the request that began with `first`."""

    first: int


@dataclass(frozen=True)
class Call:
    """Run what is called `name`, and tell its Result or Failure under the same number."""

    number: int
    name: str
    arguments: tuple[object, ...]


@dataclass(frozen=True)
class Stop:
    """Take no more requests, and say Stopped when those that run have ended or timed out."""

    drain_timeout_s: float


@dataclass(frozen=True)
class Ready:
    """The first word of an engine that can be asked."""

    facts: EngineFacts


@dataclass(frozen=True)
class StartFailed:
    """The only word of an engine that could not be built."""

    error: Exception


@dataclass(frozen=True)
class CallResult:
    """What a Call returned."""

    number: int
    value: object


@dataclass(frozen=True)
class CallFailed:
    """What a Call raised."""

    number: int
    error: Exception


@dataclass(frozen=True)
class Stopped:
    """Every answer has ended."""


@dataclass
class AnswerUpdates:
    """Deltas of answers, each under its key; of one answer the plain ones come before the others.

    A plain delta is one token without a score that shows all of its text.
    """

    keys: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    others: dict[int, list[TextDelta]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.keys or self.others)

    def add(self, key: int, delta: TextDelta) -> None:
        """Pack a delta of the answer called `key`."""
        tokens = delta.tokens
        if (
            delta.finish is None
            and len(tokens) == 1
            and tokens[0].logprob is None
            and tokens[0].text == delta.text
            and delta.prompt_logprobs is None
            and delta.error is None
            and key not in self.others  # or it would overtake another of its answer
        ):
            self.take(key, tokens[0].token_id, delta.text)
        else:
            self.others.setdefault(key, []).append(delta)

    def take(self, key: int, token_id: int, text: str) -> None:
        """Pack a plain delta; of one answer, none after another that is not plain."""
        self.keys.append(key)
        self.token_ids.append(token_id)
        self.texts.append(text)


ToEngine = Submit | Cancel | Call | Stop
FromEngine = Ready | StartFailed | AnswerUpdates | CallResult | CallFailed | Stopped
