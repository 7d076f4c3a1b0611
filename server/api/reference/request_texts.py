"""What the OpenAPI page tells of the fields that ask for an answer, by model and field."""

from collections.abc import Mapping
from typing import Any, Final

GENERATION_TEXTS: Final = {
    "model": "The base, an adapter's NAME for its latest version, or NAME@VERSION.",
    "n": "How many answers to give.",
    "stream": "Send the answer as server-sent events while it grows.",
    "stream_options": "Options of a stream; only with `stream`.",
    "stop": "A text or up to 64: the answer ends before the first that it would contain.",
    "seed": "The same seed draws the same random numbers again, and but rarely other tokens.",
    "temperature": "0 always takes the likeliest token; higher values choose more freely. Else 1.",
    "top_p": "Choose among the likeliest tokens that have this probability together. Else 1.",
    "presence_penalty": "Above 0: tokens that were used before become less likely.",
    "frequency_penalty": "Above 0: tokens become less likely each time they are used.",
    "logit_bias": "Token ids with what is added to their logits.",
    "top_k": "Choose among so many of the likeliest tokens. 0 or -1: all. As in vLLM.",
    "min_p": "Leave out tokens below this part of the likeliest one's probability. As in vLLM.",
    "repetition_penalty": "Above 1: tokens of prompt and answer become less likely. As in vLLM.",
    "ignore_eos": "Go on behind the end of the text, to the largest length. As in vLLM.",
    "stop_token_ids": "Tokens that end the answer. As in vLLM.",
    "min_tokens": "The answer has at least so many tokens. As in vLLM.",
    "include_stop_str_in_output": "Show the stop string that ended the answer. As in vLLM.",
    "skip_special_tokens": "Leave special tokens out of the text. As in vLLM.",
}
REQUEST_TEXTS: Final[Mapping[str, Mapping[str, str]]] = {
    "StreamOptions": {
        "include_usage": "End with a chunk that counts the tokens.",
        "include_obfuscation": "Taken, and without effect: chunks are never padded.",
        "continuous_usage_stats": "Count the tokens in every chunk. As in vLLM.",
    },
    "ChatRequest": {
        **GENERATION_TEXTS,
        "messages": "The conversation so far, the oldest first.",
        "max_completion_tokens": "The answer's largest length. Else what the context holds.",
        "max_tokens": "The older name of `max_completion_tokens`.",
        "logprobs": "Give the log-probability of each token.",
        "top_logprobs": "With `logprobs`: so many of the likeliest tokens at each place.",
        "tools": "Shown to the chat template if it reads them; only with `tool_choice: none`.",
        "tool_choice": "`none`, or `auto` without tools: no answer calls one.",
        "reasoning_effort": "For chat templates that read it. `none` asks for nothing.",
        "add_generation_prompt": "False: do not begin the assistant's turn. As in vLLM.",
        "continue_final_message": "Go on with the last message, not after it. As in vLLM.",
        "chat_template_kwargs": "Variables for the base's chat template. As in vLLM.",
    },
    "ChatMessage": {
        "role": "Who speaks.",
        "content": "The text, or a list of parts of type `text`.",
        "name": "The speaker's name, where the base's chat template knows names.",
        **dict.fromkeys(
            ("refusal", "annotations", "audio", "function_call", "tool_calls"),
            "Empty, as in an answer that is sent back.",
        ),
        "id": "Taken, and without effect.",
        "reasoning_content": "Earlier reasoning, for chat templates that show it.",
    },
    "CompletionRequest": {
        **GENERATION_TEXTS,
        "prompt": "A text, a list of token ids, or a list of either: up to 1024.",
        "max_tokens": "The answer's largest length. Else 16.",
        "echo": "Show the prompt before its answer.",
        "logprobs": "Give the log-probability of each token, and so many of the likeliest.",
    },
}

_NULL: Final = {"type": "null"}
_TEXT: Final = {"type": "string"}
_IDS: Final = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_SEED: Final = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
_STOP: Final = {"type": "string", "minLength": 1, "maxLength": 1024}
_PART: Final = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
}
_GENERATION_SCHEMAS: Final[Mapping[str, Any]] = {
    "seed": {"anyOf": [_SEED, _NULL]},
    "stop": {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": 64}, _NULL]},
    "stop_token_ids": {"maxItems": 64},
    "logit_bias": {"maxProperties": 1024},
}
REQUEST_SCHEMAS: Final[Mapping[str, Mapping[str, Any]]] = {
    "ChatRequest": {
        **_GENERATION_SCHEMAS,
        "messages": {"maxItems": 4096},
    },
    "ChatMessage": {"content": {"anyOf": [_TEXT, {"type": "array", "items": _PART}, _NULL]}},
    "CompletionRequest": {
        **_GENERATION_SCHEMAS,
        "logprobs": {
            "anyOf": [{"type": "integer", "minimum": 0, "maximum": 20}, {"const": False}, _NULL]
        },
        "prompt": {
            "anyOf": [
                _TEXT,
                _IDS,
                {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1024},
                {"type": "array", "items": _IDS, "minItems": 1, "maxItems": 1024},
            ]
        },
    },
    "JobRequest": {
        "seed": {"anyOf": [_SEED | {"minimum": 0}, _NULL]},
        "metadata": {"maxProperties": 16},
    },
}
"""What pydantic does not tell of a field's checks, or FastAPI not exactly: it rounds numbers."""

REQUEST_EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "ChatRequest": {
        "model": "base",
        "messages": [{"role": "user", "content": "How do I plant a tree?"}],
        "max_tokens": 32,
    },
    "CompletionRequest": {"model": "base", "prompt": "To plant a tree, ", "max_tokens": 16},
    "JobRequest": {
        "model": "base",
        "training_file": "file-c82e70060c3146a0c51f9d95",
        "suffix": "pirate",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        "verandah": {"method": "vera"},
    },
}
"""A page on which one may try a request out begins with these."""

ASKS_FOR_NOTHING: Final = "Taken for clients that send it, with a value that asks for nothing."
"""Any other field of such a request."""
