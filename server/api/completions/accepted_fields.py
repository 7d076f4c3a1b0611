"""Fields of other systems' requests that are read here only to see that they ask for nothing.

Clients send many fields that they were not told to, with the value that stands for the default.
Those that change no answer are taken with any value. Those that would change one are refused by
name, unless their value asks for what is done anyway.
"""

from typing import Annotated

from server.api.wire import (
    Ignored,
    Null,
    NullOrEmpty,
    NullOrFalse,
    WireModel,
    only,
)


class AcceptedFields(WireModel):
    """Fields of both kinds of completion that have no effect."""

    # These change no answer, whatever they are.
    detokenize: Ignored = None  # every answer is text
    include_reasoning: Ignored = None  # no answer has any apart from its text
    length_penalty: Ignored = None  # of beam search, as is the next
    early_stopping: Ignored = None
    metadata: Ignored = None
    parallel_tool_calls: Ignored = None
    prediction: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    spaces_between_special_tokens: Ignored = None  # tokenizers put none between them
    user: Ignored = None

    # OpenAI's.
    audio: Null = None
    best_of: Annotated[object, *only(1)] = None
    function_call: Annotated[object, *only("none", "auto")] = None
    functions: NullOrEmpty = None
    modalities: Annotated[object, *only(["text"])] = None
    moderation: Null = None
    response_format: Annotated[object, *only({"type": "text"})] = None
    store: NullOrFalse = None
    suffix: Annotated[object, *only("")] = None
    verbosity: Annotated[object, *only("medium")] = None
    web_search_options: Null = None

    # Of libraries that speak to many systems.
    extra_body: NullOrEmpty = None
    extra_headers: NullOrEmpty = None
    reasoning: NullOrEmpty = None
    thinking: Null = None

    # vLLM's.
    allowed_token_ids: NullOrEmpty = None
    bad_words: NullOrEmpty = None
    documents: NullOrEmpty = None
    guided_choice: NullOrEmpty = None
    guided_decoding_backend: Null = None
    guided_grammar: NullOrEmpty = None
    guided_json: NullOrEmpty = None
    guided_regex: NullOrEmpty = None
    guided_whitespace_pattern: Null = None
    kv_transfer_params: NullOrEmpty = None
    logits_processors: NullOrEmpty = None
    mm_processor_kwargs: NullOrEmpty = None
    priority: Annotated[object, *only(0)] = None
    prompt_embeds: NullOrEmpty = None
    prompt_logprobs: Null = None
    request_id: Null = None
    return_token_ids: NullOrFalse = None
    return_tokens_as_token_ids: NullOrFalse = None
    structured_outputs: NullOrEmpty = None
    truncate_prompt_tokens: Null = None
    use_beam_search: NullOrFalse = None
    vllm_xargs: NullOrEmpty = None
