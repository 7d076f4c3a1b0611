"""The answers and chunks of both completion endpoints, as the OpenAPI page tells them."""

from typing import Literal

from pydantic import Field

from server.api.reference.answer_model import AnswerModel

Finish = Literal["stop", "length"]
_FINISH = "Why the answer ended: by itself or at a stop string, or at its largest length."
_STOP_REASON = "The stop string or the stop token's id that ended it, if one did."
_LOGPROBS = "Null unless asked for."


class CachedTokens(AnswerModel):
    """Details of the prompt's tokens."""

    cached_tokens: int = Field(description="Tokens that were reused and not computed again.")


class Usage(AnswerModel):
    """Counts of tokens."""

    prompt_tokens: int = Field(description="Tokens of the prompt or prompts.", examples=[12])
    completion_tokens: int = Field(description="Tokens of all answers.", examples=[24])
    total_tokens: int = Field(description="Both together.", examples=[36])
    prompt_tokens_details: CachedTokens = Field(description="Details of the prompt's tokens.")


class TopToken(AnswerModel):
    """A token that might have been chosen."""

    token: str = Field(description="Its text.", examples=["Arr"])
    logprob: float = Field(description="Its log-probability; -9999 stands for none.")
    bytes: list[int] = Field(description="Its bytes in UTF-8: a token may be part of a character.")


class ScoredToken(TopToken):
    """A token of the answer."""

    top_logprobs: list[TopToken] = Field(description="The most likely tokens at its place.")


class ChatLogprobs(AnswerModel):
    """The log-probabilities of a chat's answer."""

    content: list[ScoredToken] = Field(description="One entry for each token of the text.")
    refusal: None = Field(description="Always null.")


class AnswerMessage(AnswerModel):
    """The answer as a message."""

    role: Literal["assistant"] = Field(description="Who speaks.")
    content: str = Field(description="The text.", examples=["Arr, matey!"])
    refusal: None = Field(description="Always null.")


class ChatChoice(AnswerModel):
    """One answer of a chat."""

    index: int = Field(description="Counts the answers from 0.", examples=[0])
    message: AnswerMessage = Field(description="The answer.")
    logprobs: ChatLogprobs | None = Field(description=_LOGPROBS)
    finish_reason: Finish = Field(description=_FINISH)
    stop_reason: str | int | None = Field(description=_STOP_REASON)


class _Labels(AnswerModel):
    """What each answer and chunk begins with."""

    id: str = Field(description="The id of the request.", examples=["chatcmpl-7f0c5a"])
    created: int = Field(description="When it began, in Unix seconds.")
    model: str = Field(description="What answered, with its version.", examples=["pirate@1"])


class ChatCompletion(_Labels):
    """The answer to a chat; with `stream`, chunks of it as server-sent events."""

    object: Literal["chat.completion"] = Field(description="The kind of document.")
    choices: list[ChatChoice] = Field(description="As many answers as `n` asks for.")
    usage: Usage = Field(description="Counts of tokens.")


class MessagePart(AnswerModel):
    """What a chunk adds to the answer. The first of a choice names the role, the last is empty."""

    role: Literal["assistant"] = Field(default="assistant", description="Only in the first chunk.")
    content: str = Field(default="", description="More of the text.")
    refusal: None = Field(default=None, description="Always null.")


class ChatChunkChoice(AnswerModel):
    """A part of one answer of a chat."""

    index: int = Field(description="Which answer, from 0.")
    delta: MessagePart = Field(description="What the chunk adds.")
    logprobs: ChatLogprobs | None = Field(description=_LOGPROBS)
    finish_reason: Finish | None = Field(description="Null until the last chunk. " + _FINISH)
    stop_reason: str | int | None = Field(default=None, description=_STOP_REASON)


class ChatCompletionChunk(_Labels):
    """A part of the answer to a chat, the data of one event. After the last comes `[DONE]`."""

    object: Literal["chat.completion.chunk"] = Field(description="The kind of document.")
    choices: list[ChatChunkChoice] = Field(description="One part; none in the chunk of `usage`.")
    usage: Usage | None = Field(
        default=None, description="Only with `include_usage`: null until the last chunk."
    )


class TextLogprobs(AnswerModel):
    """The log-probabilities of a text: four lists with one entry for each token."""

    tokens: list[str] = Field(description="The texts of the tokens.")
    token_logprobs: list[float | None] = Field(
        description="Their log-probabilities; null for the first token of a prompt."
    )
    top_logprobs: list[dict[str, float] | None] = Field(
        description="The most likely tokens at each place, by text."
    )
    text_offset: list[int] = Field(description="Where each token begins, in characters.")


class TextChoice(AnswerModel):
    """One continuation of a text, or a part of it."""

    index: int = Field(description="Counts the answers to all prompts from 0.", examples=[0])
    text: str = Field(description="The text, or more of it in a chunk.")
    logprobs: TextLogprobs | None = Field(description=_LOGPROBS)
    finish_reason: Finish | None = Field(description=_FINISH + " Null in all chunks but the last.")
    stop_reason: str | int | None = Field(description=_STOP_REASON)


class Completion(_Labels):
    """The continuations of a text; with `stream`, chunks of the same form as server-sent events."""

    object: Literal["text_completion"] = Field(description="The kind of document.")
    choices: list[TextChoice] = Field(description="`n` continuations of each prompt.")
    usage: Usage | None = Field(
        default=None, description="Counts of tokens; in a stream only in its last chunk, if asked."
    )
