"""From a request to what the engine is asked. Shared by both kinds of completion."""

import time
from dataclasses import dataclass

from adapters_store.manifest import AdapterRef
from adapters_store.store_errors import AdapterNotFound, InvalidName
from server.api.app_services import Services
from server.api.completions.generation_fields import GenerationFields
from server.engine.sequence import SamplingParams, check_token_ids
from server.errors import ContextLengthExceeded, ModelNotFound
from server.scheduler.request import Generation

_VERSION_DIGITS = 18  # more would be no version; Python refuses to read thousands


def find_model(services: Services, owner: str, model_id: str) -> AdapterRef | None:
    """The adapter version that an id names, or None for the base model. Reads the disk.

    Raises:
        ModelNotFound: neither. An unknown adapter is never answered by the base model.
    """
    if model_id == services.base.id:
        return None
    name, at, version = model_id.partition("@")
    numbered = version.isascii() and version.isdecimal() and len(version) <= _VERSION_DIGITS
    try:
        if not at or numbered:
            return services.adapters.resolve(owner, name, int(version) if at else None)
    except (AdapterNotFound, InvalidName):
        pass
    raise ModelNotFound(
        f"the model {model_id!r} does not exist or is not yours; GET /v1/models lists what there "
        f"is: {services.base.id!r}, an adapter's NAME, or NAME@VERSION"
    )


@dataclass(frozen=True)
class CheckedRequest:
    """A checked request: one generation for each prompt, and what its answers are called."""

    id: str
    created: int
    model: str  # with the version that answers, where an adapter does
    generations: tuple[Generation, ...]

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


def now() -> int:
    """Seconds since 1970, as the API tells times."""
    return int(time.time())
