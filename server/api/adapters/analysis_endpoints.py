"""/v1/adapters/{id}/analysis: what an adapter changed in its base, and how like another it is.

HTTP shapes only: `server.adapters.inspecting.inspections` does the work on a thread of its own.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from adapters_store.manifest import AdapterRef
from adapters_store.store_errors import StoreError
from server.api.app_services import CurrentOwner, GivenServices, Services
from server.api.model_lookup import find_adapter
from server.api.sse import DONE, EventStream, event
from server.errors import VerandahError
from server.interfaces import Inspection

log = logging.getLogger(__name__)

router = APIRouter(tags=["adapters"])

Document = dict[str, object]

_POLL_S = 0.05
_PATIENCE_POLLS = 20  # a second
_KEEP_ALIVE_POLLS = 200  # ten seconds
_PROGRESS = "adapter.analysis.progress"


@router.get("/v1/adapters/{adapter_id}/analysis")
async def analyse(
    adapter_id: str,
    services: GivenServices,
    owner: CurrentOwner,
    compare: str | None = Query(None, description="another adapter: NAME or NAME@VERSION"),
    stream: bool = Query(False, description="events of progress, and the analysis as the last one"),
) -> Response:
    """What an adapter (NAME or NAME@VERSION) changed, linear by linear, and how like `compare`'s
    changes that is. Updates of full rank take long; the answer is kept.
    """
    asked = await run_in_threadpool(_start, services, owner, adapter_id, compare)
    if stream:
        await _begun(asked.inspection)
        return EventStream(_progress(services, asked), on_end=lambda: None)
    # Shielded: who goes away must not cancel what others may be waiting for.
    await asyncio.shield(asyncio.wrap_future(asked.inspection.findings))
    return JSONResponse(asked.document())


@dataclass(frozen=True)
class _Asked:
    """An analysis under the names that were asked for: others may wait for the same one."""

    ref: AdapterRef
    other: AdapterRef | None
    inspection: Inspection

    def document(self) -> Document:
        """Once it has ended. Raises what it ended with."""
        document = asdict(self.inspection.findings.result())
        comparison = document.pop("comparison")
        if comparison is not None:
            comparison = {"id": str(self.other), **comparison}
        head = {"id": str(self.ref), "object": "adapter.analysis"}
        return {**head, **document, "comparison": comparison}


def _start(services: Services, owner: str, adapter_id: str, compare: str | None) -> _Asked:
    ref = find_adapter(services, owner, adapter_id)
    other = None if compare is None else find_adapter(services, owner, compare, "compare")
    return _Asked(ref, other, services.inspections.start(ref, other))


async def _begun(inspection: Inspection) -> None:
    """Give it a moment: what fails at once still has a status of its own."""
    for _ in range(_PATIENCE_POLLS):
        if inspection.done or inspection.findings.done():
            break
        await asyncio.sleep(_POLL_S)
    if inspection.findings.done():
        inspection.findings.result()


async def _progress(services: Services, asked: _Asked) -> AsyncIterator[bytes]:
    inspection, told = asked.inspection, -1
    try:
        for polls in itertools.count():
            if inspection.findings.done():
                break
            if polls % _KEEP_ALIVE_POLLS == 0:
                yield b": still running\n\n"
            if told != inspection.done:
                told = inspection.done
                yield event({"object": _PROGRESS, "done": told, "total": inspection.total})
            await asyncio.sleep(_POLL_S)
        yield event(asked.document())
    except Exception as error:  # the status is sent: the stream itself must tell
        if not isinstance(error, VerandahError | StoreError):
            log.exception("the analysis of %s failed", asked.ref)
        yield event(services.describe(error).body(), name="error")
        return
    yield DONE
