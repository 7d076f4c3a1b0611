"""/console/compare: one question to several models, whose answers grow side by side."""

import json
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query
from fastapi.responses import HTMLResponse, Response
from pydantic import ConfigDict, Field

from server.api.app_services import CurrentServices
from server.api.sse import EventStream
from server.api.wire import Text, WireModel, at_most
from server.console.mixed_answers import MixedAnswers
from server.console.model_search import find_models
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage, needs
from server.engine.sequence import RANGES

router = APIRouter(route_class=PageRoute, dependencies=[Depends(needs("models.use"))])
_streams = APIRouter()  # whose errors are the API's: a script reads them

MOST_ANSWERS: Final = 9
_LONGEST_TEXT: Final = 16_000  # characters in a link
_LONGEST_ID: Final = 200
_LARGEST_SEED: Final = 2**53 - 1  # a browser keeps no larger number exactly


class Link(WireModel):
    """What a link fills the page with. It sends nothing."""

    model_config = ConfigDict(strict=False)  # a query is text

    model: Annotated[list[Annotated[Text, Field(max_length=_LONGEST_ID)]], at_most(64)] = Field([])
    base: bool = True
    prompt: Text = Field("", max_length=_LONGEST_TEXT)
    system: Text = Field("", max_length=_LONGEST_TEXT)
    temperature: float = Field(0, ge=RANGES["temperature"][0], le=RANGES["temperature"][1])
    top_p: float = Field(1, ge=RANGES["top_p"][0], le=RANGES["top_p"][1])
    max_tokens: int = Field(256, ge=1, le=RANGES["max_tokens"][1])
    seed: int | None = Field(None, ge=-_LARGEST_SEED, le=_LARGEST_SEED)

    def models(self, base: str) -> list[str]:
        """The base first, unless the link says without it, and each once."""
        asked = ([base] if self.base else []) + [it for it in self.model if it]
        return [*dict.fromkeys(asked)]


class Comparison(WireModel):
    """Bodies of chat completions, one for each answer."""

    requests: Annotated[list[dict[str, object]], Field(min_length=1), at_most(MOST_ANSWERS)]


@router.get("/console/compare")
async def compare(
    page: CurrentPage, services: CurrentServices, link: Annotated[Link, Query()]
) -> HTMLResponse:
    """The page, filled with what a link says."""
    models = link.models(services.base.id)
    return page.show(
        "compare.html",
        link=link,
        models=models[:MOST_ANSWERS],
        left_out=models[MOST_ANSWERS:],
        ranges=RANGES,
        most=MOST_ANSWERS,
        largest_seed=_LARGEST_SEED,
    )


@router.get("/console/compare/models")
def search(
    page: CurrentPage,
    services: CurrentServices,
    q: Annotated[str, Query(max_length=_LONGEST_ID)] = "",
) -> HTMLResponse:
    """The models that a search finds."""
    found = find_models(services, page.owner, q)
    return page.show("_compare_models.html", found=found, q=q)


@_streams.post("/console/compare/stream")
async def stream(page: CurrentPage, services: CurrentServices, asked: Comparison) -> Response:
    """All answers at once. Each is a request to the API; see `MixedAnswers`."""
    request = page.request
    bodies = await services.threads.answering.run(_bodies, asked)
    answers = MixedAnswers(
        request.app.state.whole, request.scope, "/v1/chat/completions", bodies, services.describe
    )
    return EventStream(answers.events(), on_end=answers.close)


def _bodies(asked: Comparison) -> list[bytes]:
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return [json.dumps({**body, **streamed}).encode() for body in asked.requests]


router.include_router(_streams)
