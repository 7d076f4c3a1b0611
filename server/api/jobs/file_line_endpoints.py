"""/v1/files/{id}/lines: what the model sees of a file's lines in training. Knows no tokenizer."""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

from fastapi import APIRouter, Depends, Query

from server.api.app_services import CurrentOwner, CurrentServices, Services
from server.api.jobs.job_documents import Document
from server.api.jobs.job_endpoints import start_of
from server.api.reference.answer_model import answers
from server.api.reference.job_answers import FileLines
from server.api.reference.parameters import FileId
from server.api.threads import DatabaseRoute
from server.api.wire import only_known_query
from server.errors import InvalidRequest
from server.jobs.files.chosen_lines import LAST_LINE, ChosenLine, lines_from
from server.jobs.files.datasets import MAX_LINE_BYTES, lines_of
from server.jobs.files.rendered_example import RenderedExample, RenderedToken

router = APIRouter(
    prefix="/v1/files",
    tags=["files"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)

MOST_LINES: Final = 20
_MOST_TOKENS: Final = 32_768  # of all lines of an answer
_MOST_CHARACTERS: Final = MAX_LINE_BYTES


@router.get("/{file_id}/lines", responses=answers(FileLines, fails=(404,)))
async def list_lines(
    file_id: FileId,
    services: CurrentServices,
    owner: CurrentOwner,
    line: int = Query(1, ge=1, le=LAST_LINE, description="The number of the first line."),
    limit: int = Query(3, ge=1, le=MOST_LINES, description="How many at most."),
    model: str | None = Query(
        None, description="What the training would begin with: the base, or an adapter."
    ),
) -> Document:
    """Lines as the model sees them in training, token by token, and which tokens are learnt.

    Fewer lines come if these are very long: the answer has at most 32,768 tokens.
    """
    check = services.threads.file_checks.run
    return await check(_lines, services, owner, file_id, line, limit, model or services.base.id)


def _lines(
    services: Services, owner: str, file_id: str, first: int, limit: int, model: str
) -> Document:
    start = start_of(services, owner, model)
    render = services.estimator.renderer(start)
    documents: list[Document] = []
    characters = tokens = 0
    has_more = False
    with services.files.verified(owner, file_id) as file:
        for line in lines_from(lines_of(file), first):
            examples: Sequence[RenderedExample] = ()
            problem = line.problem
            if len(documents) < limit and line.record is not None:
                try:
                    examples = render(line.record)
                except InvalidRequest as error:
                    problem = str(error)
            characters += len(line.text)
            tokens += sum(len(example.tokens) for example in examples)
            over = characters > _MOST_CHARACTERS or tokens > _MOST_TOKENS
            if len(documents) == limit or (over and documents):
                has_more = True
                break
            documents.append(_line_document(line, problem, examples))
    return {"object": "list", "data": documents, "has_more": has_more}


def _line_document(line: ChosenLine, problem: str, examples: Sequence[RenderedExample]) -> Document:
    shown, left = [], _MOST_TOKENS
    for example in examples:
        shown.append(
            {
                "tokens": len(example.tokens),
                "learnt": example.learnt,
                "spans": _spans(example.tokens[:left]),
            }
        )
        left -= len(example.tokens[:left])
    return {
        "object": "file.line",
        "line": line.number,
        "text": line.text,
        "problem": problem or None,
        "examples": shown,
    }


def _spans(tokens: Sequence[RenderedToken]) -> list[Document]:
    return [
        {
            "learnt": learnt,
            "tokens": [{"id": it.id, "text": it.text, "special": it.special} for it in run],
        }
        for learnt, run in groupby(tokens, key=lambda token: token.learnt)
    ]
