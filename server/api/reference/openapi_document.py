"""Completes the OpenAPI document that FastAPI makes of the routes. Knows no request."""

from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from server.api.reference import (
    adapter_answers,
    answer_model,
    completion_answers,
    job_answers,
    operation_answers,
    organization_answers,
    share_answers,
    usage_answers,
)
from server.api.reference.request_texts import (
    ASKS_FOR_NOTHING,
    REQUEST_EXAMPLES,
    REQUEST_SCHEMAS,
    REQUEST_TEXTS,
)

Json = dict[str, Any]

_ANSWERS: Final = (
    *(answer_model.ErrorAnswer, operation_answers.Health, operation_answers.Ready),
    *(completion_answers.ChatCompletion, completion_answers.ChatCompletionChunk),
    *(completion_answers.Completion, adapter_answers.ModelCard, adapter_answers.ModelList),
    *(adapter_answers.DeletedModel, adapter_answers.Adapter, adapter_answers.AdapterPage),
    *(adapter_answers.DamagedAdapter, adapter_answers.DeletedAdapter),
    *(adapter_answers.SharedAdapter, share_answers.Share, share_answers.SharePage),
    share_answers.DeletedShare,
    *(adapter_answers.AdapterAnalysis, adapter_answers.AnalysisProgress),
    *(job_answers.File, job_answers.FilePage, job_answers.DeletedFile, job_answers.Job),
    *(job_answers.DryRun, job_answers.JobPage, job_answers.JobEvent, job_answers.EventPage),
    *(job_answers.CheckpointPage, job_answers.FileLines, job_answers.JobMetrics),
    *organization_answers.ORGANIZATION_ANSWERS,
    *usage_answers.USAGE_ANSWERS,
)
_TAGS: Final = {
    "completions": "Answers of the base and of its adapters.",
    "models": "What requests can name as their `model`.",
    "adapters": "Adapters: where they are, what they changed, and their way in and out.",
    "files": "Files that jobs train on, and files of their results.",
    "fine-tuning": "Training jobs.",
    "organization": "Projects, which own everything, with their users and keys.",
    "operations": "For operators and monitors. They need no API key.",
}
_KEY: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "A project's key, an admin key, or the key that the server was started with: "
    "`Authorization: Bearer KEY`.",
}


def openapi_document(app: FastAPI, *, keyed: bool) -> Json:
    """The document of all routes. `keyed`: the server asks for an API key."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
    )
    components = document["components"]
    schemas = components["schemas"]
    _, made = models_json_schema(
        [(model, "serialization") for model in _ANSWERS],
        ref_template="#/components/schemas/{model}",
    )
    schemas |= made["$defs"]
    # Of FastAPI's own errors, which no request is answered with.
    del schemas["HTTPValidationError"], schemas["ValidationError"]
    for name, fields in REQUEST_SCHEMAS.items():
        for field, schema in fields.items():
            schemas[name]["properties"][field] |= schema
    for name, example in REQUEST_EXAMPLES.items():
        schemas[name]["examples"] = [example]
    for name, texts in REQUEST_TEXTS.items():
        for field, shown in schemas[name]["properties"].items():
            shown["description"] = texts.get(field) or shown.get("description", ASKS_FOR_NOTHING)
    if keyed:
        components["securitySchemes"] = {"key": _KEY}
    for path, operation in _operations(document):
        _complete(operation)
        if path.startswith("/v1/"):
            for status, failure in answer_model.failures(401, 403).items():
                operation["responses"][str(status)] = failure
            if keyed:
                operation["security"] = [{"key": []}]
        operation["responses"] = dict(sorted(operation["responses"].items()))
    return document


def _operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            yield path, operation


def _complete(operation: Json) -> None:
    """Leave out what FastAPI infers from the functions: they return plain dictionaries."""
    responses = operation["responses"]
    responses.pop("422", None)
    content = responses["200"]["content"]
    schema = content.get("application/json", {}).get("schema", {})
    for inferred in ("type", "additionalProperties", "title"):
        schema.pop(inferred, None)
    if not schema:
        content.pop("application/json", None)
