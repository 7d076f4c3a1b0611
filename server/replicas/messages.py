"""The messages between the API's process and an engine's process. Knows no sockets.

Nearly all of their content is tokens. The plain ones of a message travel as three columns, which
takes a twentieth of the time of pickling an object for each (decision 14).
"""

from dataclasses import dataclass, field

from server.scheduler.request import Generation, TextDelta


@dataclass(frozen=True)
class EngineFacts:
    """What a ready engine reports about itself. `device` is a torch device's type.

    `eos_token_ids` are those that the base's files name: a base's outline lacks some.
    """

    base_name: str
    fingerprint: str
    device: str
    dtype: str
    max_context: int
    max_answers: int
    slots: int
    eos_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Submit:
    """Answer a request; the keys of its n answers are `first`, `first + 1`, ..."""

    first: int
    request: Generation


@dataclass(frozen=True)
class Cancel:
    """Stop the answers of the request whose first key is `first`."""

    first: int


@dataclass(frozen=True)
class Call:
    """Run the function `name`; a CallResult or CallFailed with the same number answers it."""

    number: int
    name: str
    arguments: tuple[object, ...]


@dataclass(frozen=True)
class Stop:
    """Take no more requests, and send Stopped when those that run have ended or timed out."""

    drain_timeout_s: float


@dataclass(frozen=True)
class Ready:
    """The first message of an engine that takes requests."""

    facts: EngineFacts


@dataclass(frozen=True)
class StartFailed:
    """The only message of an engine that could not be built."""

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
    """Updates of answers by key: plain tokens as columns, and other deltas.

    Of one answer, the plain tokens come before the others.
    """

    keys: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    others: dict[int, list[TextDelta]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.keys or self.others)

    def add(self, key: int, delta: TextDelta) -> None:
        """Pack an update of the answer `key`."""
        tokens = delta.tokens
        if (
            delta.finish is None
            and len(tokens) == 1
            and tokens[0].logprob is None
            and tokens[0].text == delta.text
            and delta.prompt_logprobs is None
            and delta.error is None
            and key not in self.others  # else it would overtake an earlier one of its answer
        ):
            self.add_token(key, tokens[0].token_id, delta.text)
        else:
            self.others.setdefault(key, []).append(delta)

    def add_token(self, key: int, token_id: int, text: str) -> None:
        """Pack a plain token; none may follow another delta of the same answer."""
        self.keys.append(key)
        self.token_ids.append(token_id)
        self.texts.append(text)


ToEngine = Submit | Cancel | Call | Stop
FromEngine = Ready | StartFailed | AnswerUpdates | CallResult | CallFailed | Stopped
