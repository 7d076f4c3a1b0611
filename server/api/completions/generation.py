"""A request once it is checked, and the counts that its answer ends with. Knows no HTTP."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from server.api.app_services import Services
from server.errors import InvalidRequest
from server.scheduler.request import Generation

T = TypeVar("T")

_LONG_TEXT = 64 * 1024  # characters; tokenizing them takes about 50 ms


@dataclass(frozen=True)
class CheckedRequest:
    """One generation for each prompt, and the labels of the answers.

    `open_ended`: the request does not say how long they may be.
    """

    id: str
    model: str  # with the version, where an adapter answers
    generations: tuple[Generation, ...]
    open_ended: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(
        cls, services: Services, generations: Sequence[Generation], *, open_ended: bool = False
    ) -> "CheckedRequest":
        """The request of these generations, which have one id and one adapter."""
        first = generations[0]
        model = services.base.id if first.adapter is None else first.adapter.id_for(first.owner)
        return cls(first.request_id, model, tuple(generations), open_ended)

    @property
    def counted_model(self) -> str:
        """The model as usage knows it: without a version, and with the owner if that is another."""
        ref, owner = self.generations[0].adapter, self.generations[0].owner
        if ref is None:
            return self.model
        return ref.name if ref.owner == owner else f"{ref.owner}/{ref.name}"

    @property
    def prompt_tokens(self) -> int:
        return sum(len(generation.prompt) for generation in self.generations)

    @property
    def most_answer_tokens(self) -> int:
        return sum(generation.n * generation.params.max_tokens for generation in self.generations)

    def usage_so_far(self, choice: int, num_tokens: int) -> dict[str, object]:
        """The counts of one answer, which goes on."""
        generation = self.generations[choice // self.generations[0].n]
        return usage(len(generation.prompt), num_tokens)

    def labels(self, kind: str) -> dict[str, object]:
        """The first fields of every document and chunk of an answer."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


async def in_thread(
    services: Services, characters: int, function: Callable[..., T], *arguments: object
) -> T:
    """What `function`, which tokenizes so many characters, returns. Long texts wait in line."""
    threads = services.threads
    group = threads.long_prompts if characters > _LONG_TEXT else threads.answering
    return await group.run(function, *arguments)


def check_count(services: Services, answers: int) -> None:
    """Refuse more answers than may ever run and wait: a 429 would have the client try for ever."""
    most = services.engine.max_answers
    if answers > most:
        raise InvalidRequest(
            f"the request asks for {answers} answers, and at most {most} may run and wait at once: "
            "ask for fewer, or start the server with a larger --max-waiting",
            param="n",
        )


class StreamUsage(Enum):
    """Which chunks of a stream have token counts."""

    NONE = "none"
    LAST = "last"
    EVERY = "every"


@dataclass(frozen=True)
class AnswerLength:
    """The largest length of an answer: what was `asked` for, and the `most` that it may have."""

    asked: int
    most: int

    @classmethod
    def of(
        cls, services: Services, prompt: Sequence[int], asked: int | None, default: int | None
    ) -> "AnswerLength":
        """What fits behind the prompt, if more is asked for; 1 at least, as the engine refuses a
        prompt that leaves no room. With `refuse_long_answers`, it refuses every length that does
        not fit.

        Args:
            asked: None stands for `default`, which is clamped always; None: as much as fits.
        """
        left = max(services.engine.max_context - len(prompt), 1)
        length = left if default is None else min(default, left)
        wanted = length if asked is None else asked
        return cls(wanted, wanted if services.refuse_long_answers else min(wanted, left))


def usage(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None
) -> dict[str, object]:
    """The counts of tokens in the OpenAI API's shape. None: the cached are not known yet."""
    counts: dict[str, object] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if cached_tokens is None:
        return counts
    return counts | {"prompt_tokens_details": {"cached_tokens": cached_tokens}}
