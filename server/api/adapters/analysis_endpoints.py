"""/v1/adapters/{id}/analysis: what an adapter changed in its base, and how similar another is.

Knows no tensors: `server.adapters.inspecting.inspections` does the work on a thread of its own.
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
from server.api.app_services import CurrentOwner, CurrentServices, Services
from server.api.model_lookup import find_adapter
from server.api.reference.adapter_answers import AdapterAnalysis, AnalysisProgress
from server.api.reference.answer_model import answers, streamed
from server.api.reference.parameters import AdapterId
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
_STREAM = 'data: {"object": "adapter.analysis.progress", "done": 1, "total": 7}\n\n'


@router.get(
    "/v1/adapters/{adapter_id:path}/analysis",
    responses=streamed(
        answers(AdapterAnalysis, fails=(404, 409, 429)),
        AnalysisProgress,
        AdapterAnalysis,
        example=_STREAM,
    ),
)
async def analyse(
    adapter_id: AdapterId,
    services: CurrentServices,
    owner: CurrentOwner,
    compare: str | None = Query(None, description="Another adapter: NAME or NAME@VERSION."),
    stream: bool = Query(False, description="Send events: progress, then the analysis."),
) -> Response:
    """What an adapter (NAME or NAME@VERSION) changed, linear by linear, and how similar the changes
    of `compare` are. Updates of full rank take long to analyse; the result is cached.
    """
    analysis = await run_in_threadpool(_start, services, owner, adapter_id, compare)
    if stream:
        await _until_started(analysis.inspection)
        return EventStream(_progress(services, analysis), on_end=lambda: None)
    # Shielded: a client that disconnects must not cancel what other clients wait for.
    await asyncio.shield(asyncio.wrap_future(analysis.inspection.findings))
    return JSONResponse(analysis.document())


@dataclass(frozen=True)
class _Analysis:
    """An inspection and the ids that this request gave: other requests may share the inspection."""

    owner: str
    ref: AdapterRef
    other: AdapterRef | None
    inspection: Inspection

    def document(self) -> Document:
        """The finished analysis. Raises what the inspection failed with."""
        document = asdict(self.inspection.findings.result())
        comparison = document.pop("comparison")
        if comparison is not None and self.other is not None:
            comparison = {"id": self.other.id_for(self.owner), **comparison}
        head = {"id": self.ref.id_for(self.owner), "object": "adapter.analysis"}
        return {**head, **document, "comparison": comparison}


def _start(services: Services, owner: str, adapter_id: str, compare: str | None) -> _Analysis:
    ref, other = find_adapter(services, owner, adapter_id, to="copy"), None
    if compare is not None:
        other = find_adapter(services, owner, compare, "compare", to="copy")
    return _Analysis(owner, ref, other, services.inspections.start(ref, other))


async def _until_started(inspection: Inspection) -> None:
    """Wait a second at most, so that a failure at once is an HTTP status and not an event."""
    for _ in range(_PATIENCE_POLLS):
        if inspection.done or inspection.findings.done():
            break
        await asyncio.sleep(_POLL_S)
    if inspection.findings.done():
        inspection.findings.result()


async def _progress(services: Services, analysis: _Analysis) -> AsyncIterator[bytes]:
    inspection, reported = analysis.inspection, -1
    try:
        for polls in itertools.count():
            if inspection.findings.done():
                break
            if polls % _KEEP_ALIVE_POLLS == 0:
                yield b": still running\n\n"
            if reported != inspection.done:
                reported = inspection.done
                yield event({"object": _PROGRESS, "done": reported, "total": inspection.total})
            await asyncio.sleep(_POLL_S)
        yield event(analysis.document())
    except Exception as error:  # the status is already sent
        if not isinstance(error, VerandahError | StoreError):
            log.exception("the analysis of %s failed", analysis.ref)
        yield event(services.describe(error).body(), name="error")
        return
    yield DONE
