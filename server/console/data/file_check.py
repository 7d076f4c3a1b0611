"""What is wrong with a file: the dry run of a job, with the text of each bad line."""

import csv
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, BinaryIO, Final, cast

from server.api.app_services import Services
from server.api.jobs import job_endpoints
from server.console.data.training_choices import TrainingChoices
from server.errors import Conflict
from server.jobs.files.chosen_lines import texts_of
from server.jobs.files.datasets import lines_of
from server.jobs.files.file_store import StoredFile

_DOWNLOADED: Final = 5_000  # characters of a line, at most
_MOST_IN_MEMORY: Final = 2**20
_LONGEST_STEM: Final = 200
_LONGEST_ENDING: Final = 20
_FORMULAS: Final = ("=", "+", "-", "@", "\t")

Problem = Mapping[str, Any]


@dataclass(frozen=True)
class BadLine:
    """A problem, with the beginning of its line. `line` is None: it is the whole file's."""

    line: int | None
    reason: str
    param: str
    text: str
    cut: bool


async def dry_run(
    services: Services, owner: str, file_id: str, choices: TrainingChoices
) -> dict[str, Any]:
    """What the job would take, or what is wrong with its files: the API's own answer. Raises as
    `create_job` does."""
    request = choices.request(file_id, services.base.id, dry_run=True)
    return await job_endpoints.create_job(request, services, owner)


async def bad_lines(
    services: Services,
    owner: str,
    problems: Sequence[Problem],
    files: Mapping[str, str],
    longest: int = _DOWNLOADED,
) -> list[BadLine]:
    """Problems of a dry run with the texts of their lines, cut at `longest` characters.

    Args:
        files: ids by the `param` of a problem.
    """
    run = services.threads.file_checks.run
    return await run(_bad_lines, services, owner, problems, files, longest)


def _bad_lines(
    services: Services,
    owner: str,
    problems: Sequence[Problem],
    files: Mapping[str, str],
    longest: int,
) -> list[BadLine]:
    texts: dict[str, dict[int, str]] = {}
    for param in {problem["param"] for problem in problems}:
        numbers = [it["line"] for it in problems if it["param"] == param and it["line"]]
        with services.files.verified(owner, files[param]) as file:
            texts[param] = texts_of(lines_of(file), numbers, longest + 1)
    return [
        BadLine(
            line=problem["line"],
            reason=problem["reason"],
            param=problem["param"],
            text=(text := texts[problem["param"]].get(problem["line"], ""))[:longest],
            cut=len(text) > longest,
        )
        for problem in problems
    ]


def as_csv(lines: Sequence[BadLine]) -> str:
    """A table. A spreadsheet would run a text that begins as a formula, so such a one gets an
    apostrophe in front."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["line", "reason", "text", "text_is_cut"])
    for it in lines:
        text = f"'{it.text}" if it.text.startswith(_FORMULAS) else it.text
        writer.writerow([it.line or "", it.reason, text, "yes" if it.cut else ""])
    return table.getvalue()


def as_jsonl(lines: Sequence[BadLine]) -> str:
    return "".join(json.dumps(asdict(it), ensure_ascii=False) + "\n" for it in lines)


async def copy_without_bad_lines(services: Services, owner: str, file: StoredFile) -> StoredFile:
    """Store the good lines of a file as a new one.

    Raises:
        Conflict: all lines are good or all are bad, or more are bad than are listed.
    """
    result = await dry_run(services, owner, file.id, TrainingChoices())
    bad = {problem["line"] for problem in result["problems"]}
    if result["valid"] or None in bad:
        raise Conflict("no line of this file is bad, so there is nothing to leave out")
    if result["problem_count"] > len(result["problems"]):
        raise Conflict(
            f"{result['problem_count']} lines are bad, which is more than can be left out at "
            "once: mend what made the file, and add it again"
        )
    with tempfile.SpooledTemporaryFile(_MOST_IN_MEMORY) as spooled:
        good = cast(BinaryIO, spooled)
        kept = await services.threads.file_checks.run(_copy, services, owner, file.id, bad, good)
        if not kept:
            raise Conflict(
                "every line of this file is bad, so nothing would be left: mend the file"
            )
        good.seek(0)
        name = PurePath(file.filename)
        new = f"{name.stem[:_LONGEST_STEM]}-good{name.suffix[:_LONGEST_ENDING]}"
        create = services.files.create
        return await services.threads.writing.run(create, owner, new, file.purpose, good)


def _copy(services: Services, owner: str, file_id: str, bad: set[int], target: BinaryIO) -> int:
    kept = 0
    with services.files.verified(owner, file_id) as file:
        for number, line in enumerate(lines_of(file), start=1):
            if number not in bad:
                target.write(line)
                kept += bool(line.strip())
    return kept
