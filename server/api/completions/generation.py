"""From a request to what the engine is asked. Shared by both kinds of completion."""

import time
from dataclasses import dataclass, field

from adapters_store.manifest import AdapterRef
from server.api.app_services import Services
from server.api.completions.generation_fields import GenerationFields
from server.engine.sequence import SamplingParams, check_token_ids
from server.errors import ContextLengthExceeded
from server.scheduler.request import Generation


@dataclass(frozen=True)
class CheckedRequest:
    """A checked request: one generation for each prompt, and what its answers are called."""

    id: str
    model: str  # with the version, where an adapter answers
    generations: tuple[Generation, ...]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def prompt_tokens(self) -> int:
        return sum(len(generation.prompt) for generation in self.generations)

    def labels(self, kind: str) -> dict[str, object]:
        """The fields with which every document and chunk of an answer begins."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def room_for_answer(services: Services, prompt_length: int, wanted: int | None, param: str) -> int:
    """The answer's largest length: `wanted`, or (None) all that the context has left.

    Raises:
        ContextLengthExceeded: prompt and answer do not fit.
    """
    room = services.engine.max_context - prompt_length
    if room < (1 if wanted is None else wanted):
        asked = "no room for an answer" if wanted is None else f"{wanted} asked for in the answer"
        raise ContextLengthExceeded(
            f"this model's maximum context length is {services.engine.max_context} tokens; "
            f"{prompt_length} in the {param} with {asked} do not fit: shorten the {param} or lower "
            "max_tokens",
            param=param,
        )
    return room if wanted is None else wanted


def generation(
    services: Services,
    owner: str,
    request_id: str,
    fields: GenerationFields,
    adapter: AdapterRef | None,
    prompt: list[int],
    params: SamplingParams,
) -> Generation:
    """One prompt's part of a request, its token ids checked."""
    check_token_ids(prompt, params, services.base.vocab_size)
    return Generation(
        request_id=request_id,
        owner=owner,
        prompt=tuple(prompt),
        params=params,
        adapter=adapter,
        n=fields.choices,
        timeout_s=services.request_timeout_s,
    )


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, object]:
    """The counts, as every answer ends with."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
