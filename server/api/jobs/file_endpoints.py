"""/v1/files: uploads and serves the files that jobs train on. Knows nothing of their lines."""

from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import FileResponse

from server.api.app_services import CurrentOwner, CurrentServices
from server.api.jobs.job_documents import Document, page_document
from server.api.threads import DatabaseRoute
from server.errors import InvalidRequest
from server.jobs.files.file_store import StoredFile

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=DatabaseRoute)


def _document(file: StoredFile) -> Document:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "expires_at": None,
        "status_details": None,
    }


@router.post("")
def upload(
    services: CurrentServices,
    owner: CurrentOwner,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[str, Form()],
) -> Document:
    """Store a file. Creating a job checks its lines."""
    if purpose != "fine-tune":
        raise InvalidRequest(
            f"purpose {purpose!r} is not supported: send 'fine-tune'", param="purpose"
        )
    return _document(services.files.create(owner, file.filename or "upload", purpose, file.file))


@router.get("")
def list_files(
    services: CurrentServices,
    owner: CurrentOwner,
    purpose: str | None = None,
    limit: int = Query(10_000, ge=1, le=10_000),
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Document:
    """The owner's files, by default the newest first."""
    page = services.files.list(owner, purpose=purpose, after=after, limit=limit, order=order)
    return page_document([_document(file) for file in page.items], page.has_more)


@router.get("/{file_id}")
def get_file(file_id: str, services: CurrentServices, owner: CurrentOwner) -> Document:
    """One file's name, size and purpose."""
    return _document(services.files.get(owner, file_id))


@router.get("/{file_id}/content")
def get_content(file_id: str, services: CurrentServices, owner: CurrentOwner) -> FileResponse:
    """The bytes of a file."""
    file = services.files.get(owner, file_id)
    return FileResponse(
        services.files.path(owner, file_id),
        media_type="application/octet-stream",
        filename=file.filename,
    )


@router.delete("/{file_id}")
def delete_file(file_id: str, services: CurrentServices, owner: CurrentOwner) -> Document:
    """Delete a file. Jobs that run already are not affected."""
    services.files.delete(owner, file_id)
    return {"id": file_id, "object": "file", "deleted": True}
