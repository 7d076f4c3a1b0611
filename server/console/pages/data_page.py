"""/console/data: an owner's files, where a new one is dropped; and the page of one file."""

from pathlib import PurePath
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Response, UploadFile
from fastapi import File as FormFile
from fastapi.responses import HTMLResponse

from adapters_store.manifest import is_name
from server.api.app_services import CurrentServices
from server.api.jobs import file_endpoints
from server.console.data.training_choices import METHOD_WORDS
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage, needs
from server.jobs.files.chosen_lines import LAST_LINE
from server.jobs.files.file_store import RESULTS

router = APIRouter(route_class=PageRoute, dependencies=[Depends(needs("files"))])

_PURPOSE: Final = "fine-tune"
_FILES: Final = 25
_OFFERED: Final = 50  # files and adapters to choose from, at most; any other can be typed
_COUNTED_IN_LIST: Final = 4 * 2**20  # bytes: lines of larger files are counted on their pages
_COUNTED: Final = 256 * 2**20


@router.get("/console/data")
def data(
    page: CurrentPage,
    services: CurrentServices,
    after: Annotated[str | None, Query(max_length=100)] = None,
    sample: bool = False,
) -> HTMLResponse:
    """The files, the newest first, and where to add one."""
    found = services.files.list(page.owner, after=after, limit=_FILES)
    rows = [(file, services.files.lines(file, _COUNTED_IN_LIST)) for file in found.items]
    return page.show(
        "data.html", rows=rows, has_more=found.has_more, after=after, sample=sample, results=RESULTS
    )


@router.post("/console/data")
def upload(
    page: CurrentPage, services: CurrentServices, file: Annotated[UploadFile, FormFile()]
) -> Response:
    """Store the file of a plain form. With scripts, the page sends it to the API itself."""
    stored = file_endpoints.upload(services, page.owner, file, _PURPOSE)
    return page.go_to(f"/console/data/{stored['id']}")


@router.get("/console/data/{file_id}")
def data_file(
    page: CurrentPage,
    services: CurrentServices,
    file_id: str,
    line: Annotated[int, Query(ge=1, le=LAST_LINE)] = 1,
) -> HTMLResponse:
    """One file: what is asked for next are its check and its first lines."""
    file = services.files.get(page.owner, file_id)
    trains = file.purpose != RESULTS and page.may("jobs")
    others = services.files.list(page.owner, purpose=_PURPOSE, limit=_OFFERED) if trains else None
    stem = PurePath(file.filename).stem
    return page.show(
        "data_file.html",
        file=file,
        lines=services.files.lines(file, _COUNTED),
        is_result=file.purpose == RESULTS,
        trains=trains,
        line=line,
        name=stem if is_name(stem) and stem != services.base.id else "",
        others=[it for it in others.items if it.id != file.id] if others else [],
        adapters=services.adapters.names(page.owner)[:_OFFERED] if trains else [],
        methods={name: METHOD_WORDS.get(name, name) for name in services.methods},
    )


@router.get("/console/data/{file_id}/delete")
def ask_delete(page: CurrentPage, services: CurrentServices, file_id: str) -> HTMLResponse:
    """What would be lost."""
    file = services.files.get(page.owner, file_id)
    return page.show("data_delete.html", file=file, lines=services.files.lines(file, _COUNTED))


@router.post("/console/data/{file_id}/delete")
def delete(page: CurrentPage, services: CurrentServices, file_id: str) -> Response:
    """Delete the file. One that a job needs is refused, as by the API."""
    file_endpoints.delete_file(file_id, services, page.owner)
    return page.go_to("/console/data")
