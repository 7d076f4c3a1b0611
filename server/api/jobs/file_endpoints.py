"""/v1/files: uploads and serves the files that jobs train on. Knows nothing of their lines."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Query, UploadFile
from fastapi import File as FormFile
from fastapi.responses import FileResponse
from pydantic import WithJsonSchema

from adapters_store.outside_values import shown
from server.api.app_services import CurrentOwner, CurrentServices
from server.api.jobs.job_documents import Document, page_document
from server.api.reference.answer_model import answers, raw
from server.api.reference.job_answers import DeletedFile, File, FilePage
from server.api.reference.parameters import After, FileId
from server.api.threads import DatabaseRoute
from server.api.wire import only_fields, only_known_query
from server.errors import InvalidRequest
from server.jobs.files.file_store import LONGEST_LIFE_S, SHORTEST_LIFE_S, StoredFile

router = APIRouter(
    prefix="/v1/files",
    tags=["files"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_BOTH = {
    "requestBody": {
        "content": {
            "multipart/form-data": {
                "schema": {"dependentRequired": {_ANCHOR: [_SECONDS], _SECONDS: [_ANCHOR]}}
            }
        }
    }
}
_FIELDS = ("file", "purpose", _ANCHOR, _SECONDS)


def _document(file: StoredFile) -> Document:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "expires_at": file.expires_at,
        "status_details": None,
    }


@router.post(
    "",
    dependencies=[Depends(only_fields(*_FIELDS))],
    responses=answers(File, fails=(429,)),
    openapi_extra=_BOTH,
)
def upload(
    services: CurrentServices,
    owner: CurrentOwner,
    file: Annotated[UploadFile, FormFile(description="The lines, as JSONL.")],
    purpose: Annotated[
        str, Form(description="What it is for.", json_schema_extra={"enum": ["fine-tune"]})
    ],
    anchor: Annotated[
        Literal["created_at"] | None,
        WithJsonSchema({"enum": ["created_at"]}),
        Form(alias=_ANCHOR, description="From when the seconds count; send both or neither."),
    ] = None,
    seconds: Annotated[
        int | None,
        WithJsonSchema({"type": "integer", "minimum": SHORTEST_LIFE_S, "maximum": LONGEST_LIFE_S}),
        Form(alias=_SECONDS, description="Delete the file after so long."),
    ] = None,
) -> Document:
    """Store a file, for ever or for so many seconds. Creating a job checks its lines."""
    if purpose != "fine-tune":
        raise InvalidRequest(
            f"purpose {shown(purpose)} is not supported: send 'fine-tune'", param="purpose"
        )
    if (anchor is None) != (seconds is None):
        missing = _ANCHOR if anchor is None else _SECONDS
        raise InvalidRequest(f"{missing} is missing: send both, or neither", param=missing)
    name = file.filename or "upload"
    return _document(
        services.files.create(owner, name, purpose, file.file, expires_after_s=seconds)
    )


@router.get("", responses=answers(FilePage))
def list_files(
    services: CurrentServices,
    owner: CurrentOwner,
    purpose: str | None = Query(None, description="Only files with this purpose."),
    limit: int = Query(10_000, ge=1, le=10_000, description="How many at most."),
    order: Literal["asc", "desc"] = Query("desc", description="By age: `desc` is newest first."),
    after: After = None,
) -> Document:
    """The owner's files, by default the newest first."""
    page = services.files.list(owner, purpose=purpose, after=after, limit=limit, order=order)
    return page_document([_document(file) for file in page.items], page.has_more)


@router.get("/{file_id}", responses=answers(File, fails=(404,)))
def get_file(file_id: FileId, services: CurrentServices, owner: CurrentOwner) -> Document:
    """One file's name, size and purpose."""
    return _document(services.files.get(owner, file_id))


@router.get(
    "/{file_id}/content",
    response_class=FileResponse,
    responses=raw("application/octet-stream", "The bytes of the file.", fails=(404,)),
)
def get_content(file_id: FileId, services: CurrentServices, owner: CurrentOwner) -> FileResponse:
    """The bytes of a file, once they are checked to be those that were uploaded."""
    file = services.files.get(owner, file_id)
    with services.files.verified(owner, file_id):
        pass  # it is checked, and what is wrong has been raised
    return FileResponse(
        services.files.path(owner, file_id),
        media_type="application/octet-stream",
        filename=file.filename,
    )


@router.delete("/{file_id}", responses=answers(DeletedFile, fails=(404, 409)))
def delete_file(file_id: FileId, services: CurrentServices, owner: CurrentOwner) -> Document:
    """Delete a file. Jobs that run already are not affected."""
    services.files.delete(owner, file_id)
    return {"id": file_id, "object": "file", "deleted": True}
