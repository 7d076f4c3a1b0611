"""A request once it is checked, and the counts that its answer ends with. Knows no HTTP."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.api.app_services import Services
from server.scheduler.request import Generation


@dataclass(frozen=True)
class CheckedRequest:
    """One generation for each prompt, and the labels of the answers."""

    id: str
    model: str  # with the version, where an adapter answers
    generations: tuple[Generation, ...]
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, services: Services, generations: Sequence[Generation]) -> "CheckedRequest":
        """The request of these generations, which have one id and one adapter."""
        first = generations[0]
        model = services.base.id if first.adapter is None else str(first.adapter)
        return cls(first.request_id, model, tuple(generations))

    @property
    def prompt_tokens(self) -> int:
        return sum(len(generation.prompt) for generation in self.generations)

    def labels(self, kind: str) -> dict[str, object]:
        """The first fields of every document and chunk of an answer."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def context_left(services: Services, prompt: Sequence[int]) -> int:
    """How long an answer may be for which the request names no length. 1 at least: the engine
    refuses what does not fit.
    """
    return max(services.engine.max_context - len(prompt), 1)


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, object]:
    """The counts of tokens in the OpenAI API's shape."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
