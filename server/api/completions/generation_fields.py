"""Fields that chat and plain completions share: how to sample, and how to stream."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from adapters_store.outside_values import shown, whole_number
from server.api.completions.accepted_fields import AcceptedFields
from server.api.completions.generation import AnswerLength, StreamUsage
from server.api.wire import Text, WireModel, at_most, encodable
from server.engine.sequence import RANGES, SamplingParams
from server.errors import InvalidRequest

_MAX_CHOICES = 128
_MAX_STOPS = 64
_LONGEST_STOP = 1024  # each token's text is held against all of them
_ALL_STOPS = 2048  # characters of all together
_MAX_BIASES = 1024
_LONGEST_SALT = 1024


def _checked_stops(value: object) -> object:
    stops = value if isinstance(value, list) else [] if value is None else [value]
    for number, stop in enumerate(stops):
        if number == _MAX_STOPS or not isinstance(stop, str) or len(stop) > _LONGEST_STOP:
            raise PydanticCustomError(
                "stop",
                "is not text of at most {length} characters, nor a list of at most {count} such "
                "texts: give one of them",
                {"length": _LONGEST_STOP, "count": _MAX_STOPS},
            )
        if not stop:
            raise PydanticCustomError("stop", "holds an empty string: leave it out")
        encodable(stop)
    if sum(map(len, stops)) > _ALL_STOPS:
        raise PydanticCustomError(
            "stop", "has more than {length} characters together: give fewer", {"length": _ALL_STOPS}
        )
    return value


def _checked_biases(biases: dict[str, float] | None) -> dict[str, float] | None:
    low, high = RANGES["logit_bias"]
    for key, bias in (biases or {}).items():
        if whole_number(key) is None:
            raise PydanticCustomError(
                "logit_bias",
                "holds {key}, which is no token id: write its digits",
                {"key": shown(key)},
            )
        if not low <= bias <= high:
            raise PydanticCustomError(
                "logit_bias",
                "holds {bias} for token {key}, which is not between {low} and {high}: give another",
                {"bias": bias, "key": key, "low": low, "high": high},
            )
    return biases


def ranged(name: str) -> Any:
    """The field of a number that the engine takes within bounds; None by default."""
    low, high = RANGES[name]
    return Field(None, ge=low, le=high)


class StreamOptions(WireModel):
    """`include_usage`: a last chunk with the counts. `continuous_usage_stats`: all chunks have them
    too. Obfuscation is never added."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class GenerationFields(AcceptedFields):
    """What both kinds of request may set. None stands for the default."""

    model: Text
    n: int | None = Field(None, ge=1, le=_MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[str | list[str] | None, PlainValidator(_checked_stops)] = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float | None = ranged("temperature")
    top_p: float | None = ranged("top_p")
    presence_penalty: float | None = ranged("presence_penalty")
    frequency_penalty: float | None = ranged("frequency_penalty")
    logit_bias: Annotated[
        dict[str, float] | None, at_most(_MAX_BIASES), AfterValidator(_checked_biases)
    ] = None

    # Not OpenAI's; vLLM's names.
    top_k: int | None = Field(None, ge=-1, le=RANGES["top_k"][1])
    min_p: float | None = ranged("min_p")
    repetition_penalty: float | None = ranged("repetition_penalty")
    min_tokens: int | None = ranged("min_tokens")
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    stop_token_ids: Annotated[list[int] | None, at_most(_MAX_STOPS)] = None
    cache_salt: Annotated[Text | None, Field(min_length=1, max_length=_LONGEST_SALT)] = None

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(
        cls, value: StreamOptions | None, info: ValidationInfo
    ) -> StreamOptions | None:
        if value is not None and not info.data.get("stream", True):
            raise PydanticCustomError("no_stream", "needs stream=true: send both")
        return value

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def stream_usage(self) -> StreamUsage | None:
        """Which chunks of the stream have token counts; None: no stream is wanted."""
        if not self.stream:
            return None
        options = self.stream_options or StreamOptions()
        if not options.include_usage:
            return StreamUsage.NONE
        return StreamUsage.EVERY if options.continuous_usage_stats else StreamUsage.LAST

    def sampling(
        self,
        length: AnswerLength,
        *,
        top_logprobs: int | None = None,
        prompt_logprobs: bool = False,
    ) -> SamplingParams:
        """These fields as the engine's parameters.

        Raises:
            InvalidRequest: a value is out of range; `param` names it.
        """
        least = self.min_tokens or 0
        if least > length.asked:
            raise InvalidRequest(
                f"min_tokens={least} is above the answer's largest length of {length.asked}: lower "
                "it, or send a larger max_tokens",
                param="min_tokens",
            )
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=length.most,
            min_tokens=min(least, length.most),
            temperature=_or(self.temperature, 1.0),
            top_p=_or(self.top_p, 1.0),
            top_k=max(self.top_k or 0, 0),  # vLLM's -1 means all, as 0 does
            min_p=_or(self.min_p, 0.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            logit_bias=tuple((int(key), bias) for key, bias in (self.logit_bias or {}).items()),
            seed=self.seed,
            stop=tuple(stops),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            include_stop=bool(self.include_stop_str_in_output),
            skip_special_tokens=self.skip_special_tokens is not False,
            top_logprobs=top_logprobs,
            prompt_logprobs=prompt_logprobs,
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
