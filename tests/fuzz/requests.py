"""One valid request of each kind, with every field set that may be: what the body fuzzer changes.

`<file>`, `<job>`, `<adapter>` and the like stand for what `Target.stock` has.
"""

from typing import Any

Request = dict[str, Any]

_SAMPLING: dict[str, Any] = {
    "model": "base",
    "max_tokens": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "n": 2,
    "seed": 1,
    "stop": ["xyz", "\n"],
    "logit_bias": {"5": 1.5},
    "presence_penalty": 0.1,
    "frequency_penalty": -0.1,
    "top_k": 5,
    "min_p": 0.01,
    "repetition_penalty": 1.1,
    "ignore_eos": True,
    "stop_token_ids": [3],
    "min_tokens": 2,
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "user": "me",
}
_MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "ann"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Say 1"},
]
_CHAT = _SAMPLING | {
    "messages": _MESSAGES,
    "logprobs": True,
    "top_logprobs": 2,
    "metadata": {"a": "b"},
    "response_format": {"type": "text"},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "none",
    "chat_template_kwargs": {"enable_thinking": False},
}
_TEXT = _SAMPLING | {"prompt": "Once upon", "echo": True, "logprobs": 2}
_STREAM = {"stream": True, "stream_options": {"include_usage": True}}
_JOB = {
    "model": "base",
    "training_file": "<file>",
    "suffix": "fuzzed",
    "seed": 3,
    "metadata": {"team": "a"},
    "integrations": [],
}
_METHODS: list[dict[str, Any]] = [
    {"method": "vera", "basis": "shared", "d_initial": 0.1, "trained": "d+b"},
    {"method": "randlora", "sparsity": 3.0},
    {"method": "lora", "alpha": 8.0},
    {"method": "asymmetric-lora", "alpha": 8.0, "trained": "B"},
]
_OPTIONS = {
    "rank": 4,
    "targets": ["q_proj", "v_proj"],
    "learning_rate": 0.01,
    "schedule": "cosine",
    "warmup_ratio": 0.1,
    "validation_split": 0.1,
    "dropout": 0.1,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_tokens_per_batch": 256,
    "early_stopping": 2,
    "checkpoints": 1,
    "publish": "always",
    "dry_run": True,
}
_FEW = {"n_epochs": 1, "batch_size": 2}


def _post(path: str, body: Any) -> Request:
    return {"method": "POST", "path": path, "body": body}


def _form(path: str, **fields: Any) -> Request:
    return {"method": "POST", "path": path, "form": fields}


def _get(path: str, **query: Any) -> Request:
    return {"method": "GET", "path": path, "query": query}


def _job(*changes: dict[str, Any]) -> Request:
    body = dict(_JOB)
    for change in changes:
        body |= change
    return _post("/v1/fine_tuning/jobs", body)


_OF_JOBS = "/v1/fine_tuning/jobs"
_OF_ADAPTERS = "/v1/adapters/<adapter>"

REQUESTS: list[Request] = [
    _post("/v1/chat/completions", _CHAT),
    _post("/v1/chat/completions", _CHAT | _STREAM | {"model": "<adapter>"}),
    _post("/v1/completions", _TEXT),
    _post("/v1/completions", _TEXT | _STREAM | {"prompt": [5, 6, 7]}),
    _post("/v1/completions", _TEXT | {"prompt": ["ab", "cd"], "model": "<adapter>"}),
    _post("/v1/completions", _TEXT | {"prompt": [[5, 6], [7]], "n": 1}),
    _job({"hyperparameters": _FEW | {"learning_rate_multiplier": 2.0}}),
    *(_job({"hyperparameters": _FEW, "verandah": _OPTIONS | method}) for method in _METHODS),
    _job({"method": {"type": "supervised", "supervised": {"hyperparameters": _FEW}}}),
    _job({"model": "<adapter>", "validation_file": "<file>"}),
    _form("/v1/files", purpose="fine-tune", file="<lines>"),
    _form(
        "/v1/files",
        purpose="fine-tune",
        file="<lines>",
        **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"},
    ),
    _form(
        "/v1/adapters/import",
        name="fuzzed",
        config="<config>",
        weights="<weights>",
        torch_era="2.12",
        half_dtype="float16",
        base_dtype="float32",
    ),
    _get("/v1/models", limit="2", after="base"),
    _get("/v1/models/<adapter>"),
    _get("/v1/adapters", limit="2", after="a"),
    _get(_OF_ADAPTERS),
    _get(f"{_OF_ADAPTERS}/analysis", compare="<adapter>", stream="true"),
    _get(f"{_OF_ADAPTERS}/export", format="peft"),
    _get(f"{_OF_ADAPTERS}/export", format="merged"),
    _post(f"{_OF_ADAPTERS}/pin", None),
    _post(f"{_OF_ADAPTERS}/unpin", None),
    _get("/v1/files", purpose="fine-tune", limit="2", order="asc", after="<file>"),
    _get("/v1/files/<file>"),
    _get("/v1/files/<file>/content"),
    _get("/v1/files/<file>/lines", line="2", limit="3", model="<adapter>"),
    _get(_OF_JOBS, limit="2", after="<job>", status="queued", **{"metadata[team]": "a"}),
    _get(f"{_OF_JOBS}/<job>"),
    _get(f"{_OF_JOBS}/<job>/events", limit="2", after="<event>", stream="false"),
    _get(f"{_OF_JOBS}/<job>/events", stream="true"),
    _get(f"{_OF_JOBS}/<job>/checkpoints", limit="2"),
    _post(f"{_OF_JOBS}/<job>/pause", None),
    _post(f"{_OF_JOBS}/<paused>/resume", None),
    _post(f"{_OF_JOBS}/<job>/cancel", None),
    {"method": "DELETE", "path": "/v1/files/<spare>"},
    {"method": "DELETE", "path": "/v1/adapters/<adapter>"},
    {"method": "DELETE", "path": "/v1/models/<adapter>"},
    _get("/health"),
    _get("/ready"),
    _get("/metrics"),
]
