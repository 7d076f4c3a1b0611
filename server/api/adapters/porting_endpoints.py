"""/v1/adapters/import and /v1/adapters/{id}/export: PEFT's files in and out. Knows no formats."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal, cast
from zipfile import ZIP_STORED, ZipFile

from anyio import CancelScope
from fastapi import APIRouter, Depends, File, Form, Query, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.adapters.adapter_endpoints import Entry, entry_of
from server.api.app_services import CurrentOwner, CurrentServices
from server.api.model_lookup import check_new_name, find_adapter
from server.api.reference.adapter_answers import Adapter
from server.api.reference.answer_model import answers, raw
from server.api.reference.parameters import AdapterId
from server.api.sse import ClientStalled, in_time
from server.api.wire import only_fields
from server.errors import VerandahError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

_CHUNK_BYTES = 2**20
_FIELDS = ("name", "config", "weights", "torch_era", "half_dtype", "base_dtype")


@router.post(
    "/import",
    dependencies=[Depends(only_fields(*_FIELDS))],
    responses=answers(Adapter, fails=(409, 429)),
)
def import_adapter(
    services: CurrentServices,
    owner: CurrentOwner,
    name: Annotated[str, Form(description="The adapter's name: this makes a new version of it.")],
    config: Annotated[UploadFile, File(description="PEFT's file adapter_config.json.")],
    weights: Annotated[UploadFile, File(description="PEFT's file adapter_model.safetensors.")],
    torch_era: Annotated[
        str, Form(description="Torch release that drew matrices that were not saved: 2.11 or 2.12.")
    ] = "",
    half_dtype: Annotated[
        str, Form(description="Half precision in which it drew them: bfloat16 or float16.")
    ] = "",
    base_dtype: Annotated[
        str, Form(description="Number format of the base model in that training.")
    ] = "float32",
) -> Entry:
    """Publish a PEFT checkpoint (VeRA, RandLoRA or LoRA) as the next version of an adapter."""
    check_new_name(services, owner, name, "name")
    ref = services.porting.import_adapter(
        owner,
        name,
        config.file,
        weights.file,
        file_name=weights.filename or "",
        torch_era=torch_era,
        half_dtype=half_dtype,
        base_dtype=base_dtype,
    )
    try:
        services.tenants.audit.note("adapter.imported", str(ref), owner=owner)
    except VerandahError:  # no change without its record
        services.adapters.delete(ref.owner, ref.name, ref.version)
        raise
    return entry_of(services, owner, str(ref), ref)


@router.get(
    "/{adapter_id:path}/export",
    response_class=StreamingResponse,
    responses=raw("application/zip", "The files as a zip.", fails=(404, 429)),
)
def export_adapter(
    adapter_id: AdapterId,
    services: CurrentServices,
    owner: CurrentOwner,
    form: Literal["peft", "peft-lora", "merged"] = Query(
        "peft", alias="format", description="For PEFT; as LoRA for vLLM; or merged into the base."
    ),
) -> StreamingResponse:
    """An adapter (NAME or NAME@VERSION) as a zip of files for PEFT, vLLM or transformers."""
    ref = find_adapter(services, owner, adapter_id, to="copy")
    folder = services.porting.export_adapter(ref, form, owner=owner)
    release = partial(services.porting.release, folder)
    return _FolderResponse(folder, f"{ref.name}-{ref.version}-{form}.zip", release)


class _FolderResponse(StreamingResponse):
    """A folder's files as one zip, packed while it is sent to a client that reads it.

    Args:
        release: called at the end, however that comes.
    """

    def __init__(self, folder: Path, filename: str, release: Callable[[], None]) -> None:
        self._release = release
        headers = {"content-disposition": f'attachment; filename="{filename}"'}
        super().__init__(_zipped(folder), headers=headers, media_type="application/zip")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientStalled):  # the server closes the connection
                await super().__call__(scope, receive, in_time(send))
        finally:
            with CancelScope(shield=True):
                await run_in_threadpool(self._release)


class _Pipe(RawIOBase):
    """A file for the zip to write to, whose bytes the response takes out again."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        self._waiting.append(bytes(data))
        return len(self._waiting[-1])

    def take(self) -> bytes:
        data, self._waiting = b"".join(self._waiting), []
        return data


def _zipped(folder: Path) -> Iterator[bytes]:
    pipe = _Pipe()
    with ZipFile(cast(IO[bytes], pipe), "w", ZIP_STORED) as archive:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            # A zip that cannot seek must allow for large files: it knows no size beforehand.
            with path.open("rb") as file, archive.open(path.name, "w", force_zip64=True) as entry:
                while chunk := file.read(_CHUNK_BYTES):
                    entry.write(chunk)
                    yield pipe.take()
    yield pipe.take()
