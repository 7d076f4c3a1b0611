"""Where a version comes from: the steps from the base model to it, with their jobs and files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from adapters_store.manifest import AdapterRef, Manifest, parse_adapter_id
from adapters_store.store_errors import AdapterNotFound, InvalidName, StoreError
from server.console.rendering import Page
from server.errors import NotFound

MOST_STEPS: Final = 6

Kind = Literal["base", "job", "import", "copy", "version", "earlier"]


@dataclass(frozen=True)
class Thing:
    """A file, a job or a version: how it is called, and whether it is still there."""

    title: str
    link: str | None = None
    gone: bool = False


@dataclass(frozen=True)
class Step:
    """One place in the picture, behind the one before.

    Attributes:
        files: what a job learnt from.
        note: what else is known, in a few words.
        here: it is the version that the page shows.
    """

    kind: Kind
    thing: Thing
    files: Sequence[Thing] = ()
    note: str = ""
    here: bool = False


def lineage_of(page: Page, ref: AdapterRef) -> Sequence[Step]:
    """The steps from the base to one of the owner's versions. A long line is cut at its beginning.

    Damaged versions, and those that are gone or of another owner, end it: what was before is not
    known.
    """
    steps: list[Step] = []
    at: AdapterRef | None = ref
    while at is not None:
        manifest = _manifest(page, at)
        if len(steps) > 2 * MOST_STEPS and manifest is not None:
            steps.append(Step("earlier", _version(at), note="and what was before"))
            break
        gone = Thing(at.id_for(page.owner), gone=True)
        steps.append(Step("version", _version(at) if manifest else gone, here=at == ref))
        if manifest is None:
            break
        steps.append(_made(page, manifest.provenance))
        came = manifest.provenance.get("continued_from") or manifest.provenance.get("copied_from")
        at = _own(page, came)
        if came is not None and at is None:
            steps.append(_foreign(page, came))
        elif came is None and steps[-1].kind != "import":
            steps.append(Step("base", Thing(manifest.base_name), note="base model"))
    return steps[::-1]


def _manifest(page: Page, ref: AdapterRef) -> Manifest | None:
    try:
        return page.services.adapters.open(ref).manifest
    except StoreError:
        return None


def _version(ref: AdapterRef) -> Thing:
    return Thing(str(ref), f"/console/adapters/{ref}")


def _own(page: Page, came: str | None) -> AdapterRef | None:
    """The owner's version that `came` names."""
    if came is None or "/" in came:
        return None
    try:
        name, version = parse_adapter_id(came)
    except InvalidName:
        return None
    return None if version is None else AdapterRef(page.owner, name, version)


def _foreign(page: Page, came: str) -> Step:
    """A version of another owner, which may not be shared any more."""
    owner, _, rest = came.partition("/")
    try:
        name, version = parse_adapter_id(rest)
        shared = page.services.tenants.shares.given(page.owner, owner, name)
        if shared is None or version is None:
            raise AdapterNotFound(came)
        page.services.adapters.resolve(owner, name, version)
    except StoreError:
        return Step("version", Thing(came[:200], gone=True), note="of another owner")
    return Step("version", Thing(came, f"/console/adapters/{came}"), note="of another owner")


def _made(page: Page, origin: Mapping[str, str]) -> Step:
    """How a version came about."""
    if "copied_from" in origin:
        return Step("copy", Thing("copied"))
    if "job" not in origin:
        came = origin.get("imported_from", "")
        return Step("import", Thing(f"imported from {came}" if came else "published by a program"))
    step = origin.get("step")
    note = f"its checkpoint of step {step}" if step else ""
    named = [origin[key] for key in ("training_file", "validation_file") if key in origin]
    status = ""
    job_id = origin["job"]
    job = Thing(job_id)
    if page.may("jobs"):
        try:
            found = page.services.jobs.get(page.owner, job_id)
        except NotFound:
            job = Thing(job_id, gone=True)
        else:
            status = found.evaluation.verdict or "" if found.evaluation else ""
            job = Thing(job_id, f"/console/jobs/{job_id}")
            if found.validation_file:
                named = [*dict.fromkeys((*named, found.validation_file))]
    verdict = f"{status} than what it began from" if status in ("better", "worse") else status
    notes = [it for it in (note, verdict) if it]
    return Step("job", job, [_file(page, it) for it in named], " · ".join(notes))


def _file(page: Page, file_id: str) -> Thing:
    if not page.may("files"):
        return Thing(file_id)
    try:
        file = page.services.files.get(page.owner, file_id)
    except NotFound:
        return Thing(file_id, gone=True)
    return Thing(file.filename, f"/console/data/{file_id}")
