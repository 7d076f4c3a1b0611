"""Fields that chat and plain completions share: how to sample, and what is refused.

Fields of the OpenAI API that change nothing here are dropped. Those that would change the answer
and are not supported are refused by name, unless their value asks for the default.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from adapters_store.outside_values import shown, whole_number
from server.api.wire import Text, WireModel, at_most, encodable
from server.engine.sequence import SamplingParams
from server.errors import InvalidRequest

_WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "user",
    }
)

# Refused, except with these values, which ask for the default.
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}

_MAX_CHOICES = 128
_MAX_STOPS = 64
_LONGEST_STOP = 1024  # each token's text is held against all of them
_ALL_STOPS = 2048  # characters of all together
_MAX_BIASES = 1024


def _checked_stops(value: object) -> object:
    stops = value if isinstance(value, list) else [] if value is None else [value]
    for number, stop in enumerate(stops):
        if number == _MAX_STOPS or not isinstance(stop, str) or len(stop) > _LONGEST_STOP:
            raise PydanticCustomError(
                "stop",
                "not text of at most {length} characters, nor a list of at most {count} such texts",
                {"length": _LONGEST_STOP, "count": _MAX_STOPS},
            )
        encodable(stop)
    if sum(map(len, stops)) > _ALL_STOPS:
        raise PydanticCustomError(
            "stop", "more than {length} characters together", {"length": _ALL_STOPS}
        )
    return value


class StreamOptions(WireModel):
    """`include_usage`: a last chunk with the counts. Obfuscation is never added."""

    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationFields(WireModel):
    """What both kinds of request may set. None stands for the default."""

    model: Text
    n: int | None = Field(None, ge=1, le=_MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[str | list[str] | None, PlainValidator(_checked_stops)] = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float] | None, at_most(_MAX_BIASES)] = None

    # Not OpenAI's; vLLM's names.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[int] | None, at_most(_MAX_STOPS)] = None

    @model_validator(mode="before")
    @classmethod
    def _drop_or_refuse(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        for name, harmless in _UNSUPPORTED.items():
            if name in data and data[name] not in harmless:
                raise InvalidRequest(f"{name} is not supported: leave it out", param=name)
        unwanted = _WITHOUT_EFFECT | _UNSUPPORTED.keys()
        return {name: value for name, value in data.items() if name not in unwanted}

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def usage_chunk(self) -> bool | None:
        """Whether the stream ends with a chunk of token counts; None: no stream is wanted."""
        if not self.stream:
            return None
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(
        self, *, max_tokens: int, top_logprobs: int | None = None, prompt_logprobs: bool = False
    ) -> SamplingParams:
        """These fields as the engine's parameters.

        Raises:
            InvalidRequest: a value is out of range; `param` names it.
        """
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "stream_options needs stream=true: send both", param="stream_options"
            )
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=_or(self.temperature, 1.0),
            top_p=_or(self.top_p, 1.0),
            top_k=max(self.top_k or 0, 0),  # vLLM's -1 means all, as 0 does
            min_p=_or(self.min_p, 0.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            logit_bias=_biases(self.logit_bias or {}),
            seed=self.seed,
            stop=tuple(stops),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            top_logprobs=top_logprobs,
            prompt_logprobs=prompt_logprobs,
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _biases(biases: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    return tuple((_token_id(key), bias) for key, bias in biases.items())


def _token_id(key: str) -> int:
    token_id = whole_number(key)
    if token_id is None:
        raise InvalidRequest(
            f"logit_bias: {shown(key)} is not a token id: write its digits", param="logit_bias"
        )
    return token_id
