"""/v1/fine_tuning/jobs: creates, lists and controls training jobs. Knows no training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from adapters_store.manifest import Manifest
from adapters_store.outside_values import shown
from server.api.app_services import CurrentOwner, CurrentServices, Services
from server.api.jobs.job_documents import (
    Document,
    checkpoint_document,
    curve_document,
    job_document,
    page_document,
)
from server.api.jobs.job_request import JobRequest, read_options
from server.api.model_lookup import check_new_name, find_model
from server.api.reference.answer_model import answers
from server.api.reference.job_answers import CheckpointPage, DryRun, Job, JobMetrics, JobPage
from server.api.reference.parameters import After, JobId
from server.api.threads import DatabaseRoute
from server.api.wire import only_known_query
from server.errors import InvalidDataset, InvalidRequest, LineProblem
from server.jobs.files.datasets import MIN_EXAMPLES, Dataset, lines_of, validate
from server.jobs.queue.continuing import check_continuable, inherited
from server.jobs.queue.job import JobStatus
from server.jobs.queue.job_estimate import JobEstimate
from server.jobs.queue.train_options import TrainOptions

router = APIRouter(
    prefix="/v1/fine_tuning/jobs",
    tags=["fine-tuning"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)


@router.post("", responses=answers(Job, DryRun, fails=(404, 409, 429)))
async def create_job(body: JobRequest, services: CurrentServices, owner: CurrentOwner) -> Document:
    """Check every line of the files, estimate the cost, then queue the job.

    A wrong file is refused with its wrong lines. `verandah: {"dry_run": true}` queues nothing; the
    answer is the estimate, or the wrong lines.
    """
    checked = await services.threads.file_checks.run(_checked, body, services, owner)
    return await services.threads.writing.run(checked) if callable(checked) else checked


async def answer(
    services: Services, _waker: object, owner: str, body: JobRequest, _receive: object
) -> Response:
    """The answer of `create_job`."""
    return JSONResponse(await create_job(body, services, owner))


def _checked(body: JobRequest, services: Services, owner: str) -> Document | Callable[[], Document]:
    """The answer of a dry run, or else what queues the job."""
    dry_run = body.dry_run  # read first: a wrong one is refused before the disk is read
    start = start_of(services, owner, body.model)
    requested = body.options()
    if start:
        requested = inherited(*start, requested, services.methods)
    options = read_options(requested, services.methods)
    _check_rank(services, options)
    if body.suffix is not None:
        check_new_name(services, owner, body.suffix, "suffix")
    files = body.training_file, body.validation_file
    services.jobs.check(owner, *files, suffix=body.suffix, metadata=body.metadata)
    model = start[0] if start else body.model
    try:
        train, valid = _read_files(services, owner, body)
        estimate = services.estimator.estimate(train, valid, options, start)
    except InvalidDataset as error:
        if dry_run:
            return _dry_run(model, error)
        raise
    if dry_run:
        return _dry_run(model, None, estimate)

    def queue() -> Document:
        job = services.jobs.create(
            owner,
            model,
            *files,
            suffix=body.suffix,
            seed=body.seed,
            hyperparameters=options,
            metadata=body.metadata,
            estimate=estimate,
            notice=worker_notice(services),
        )
        return job_document(job)

    return queue


@router.get("", responses=answers(JobPage))
def list_jobs(
    request: Request,
    services: CurrentServices,
    owner: CurrentOwner,
    after: After = None,
    limit: int = Query(20, ge=1, le=100, description="How many at most."),
    status: JobStatus | None = Query(None, description="Only jobs of this status."),
    metadata: str | None = Query(
        None,
        description="Only jobs without metadata. `metadata[KEY]=VALUE`: with that pair.",
        json_schema_extra={"enum": ["null", None]},
    ),
) -> Document:
    """The owner's jobs, the newest first. `metadata[KEY]=VALUE` selects jobs with that pair."""
    pairs = _metadata(request.query_params.multi_items())
    page = services.jobs.list(owner, after=after, limit=limit, metadata=pairs, status=status)
    return page_document([job_document(job) for job in page.items], page.has_more)


@router.get("/{job_id}", responses=answers(Job, fails=(404,)))
def get_job(job_id: JobId, services: CurrentServices, owner: CurrentOwner) -> Document:
    """The state of a job."""
    return job_document(services.jobs.get(owner, job_id))


@router.post("/{job_id}/cancel", responses=answers(Job, fails=(404, 409)))
def cancel_job(job_id: JobId, services: CurrentServices, owner: CurrentOwner) -> Document:
    """Stop a job. A running job stays `running` until its worker has stopped it."""
    return job_document(services.jobs.cancel(owner, job_id))


@router.post("/{job_id}/pause", responses=answers(Job, fails=(404, 409)))
def pause_job(job_id: JobId, services: CurrentServices, owner: CurrentOwner) -> Document:
    """Pause a job. A running job stays `running` until its worker has saved it."""
    return job_document(services.jobs.pause(owner, job_id))


@router.post("/{job_id}/resume", responses=answers(Job, fails=(404, 409)))
def resume_job(job_id: JobId, services: CurrentServices, owner: CurrentOwner) -> Document:
    """Queue a paused job again. It continues where it stopped."""
    return job_document(services.jobs.resume(owner, job_id))


@router.get("/{job_id}/checkpoints", responses=answers(CheckpointPage, fails=(404,)))
def list_checkpoints(
    job_id: JobId,
    services: CurrentServices,
    owner: CurrentOwner,
    after: After = None,
    limit: int = Query(10, ge=1, le=100, description="How many at most."),
) -> Document:
    """The versions that a job published during training, the newest first."""
    page = services.jobs.checkpoints(owner, job_id, after=after, limit=limit)
    return page_document([checkpoint_document(item) for item in page.items], page.has_more)


@router.get("/{job_id}/metrics", responses=answers(JobMetrics, fails=(404,)))
def get_metrics(
    job_id: JobId,
    services: CurrentServices,
    owner: CurrentOwner,
    points: int = Query(1000, ge=10, le=5000, description="About how many steps at most."),
) -> Document:
    """The figures of a job step by step, to draw.

    If there are more than `points`, a span of steps keeps its lowest and its highest training loss.
    Validation losses are all kept."""
    return curve_document(job_id, services.jobs.curve(owner, job_id, points))


def start_of(services: Services, owner: str, model: str) -> tuple[str, Manifest] | None:
    """The id and manifest of the adapter to continue from; None for the base.

    Raises:
        ModelNotFound, Forbidden: as of `find_model`.
        InvalidRequest: it cannot be continued here.
    """
    ref = find_model(services, owner, model, to="copy")  # what it becomes is the job's owner's
    if ref is None:
        return None
    start, manifest = ref.id_for(owner), services.adapters.open(ref).manifest
    check_continuable(start, manifest, services.base.fingerprint)
    return start, manifest


def _check_rank(services: Services, options: TrainOptions) -> None:
    if options.rank is not None and options.rank > services.max_rank:
        raise InvalidRequest(
            f"rank={options.rank} is above this server's limit of {services.max_rank}: choose a "
            "smaller rank, or start the server with a larger --max-rank",
            param="rank",
        )


def worker_notice(services: Services) -> str:
    """What the job's owner should know if no worker of this server would take the job now."""
    if services.worker is None:
        return (
            "This server runs no training worker. The job waits until `verandah worker` runs with "
            "the same home, or the server is started without --no-worker"
        )
    if not services.worker.alive:
        return "The training worker does not run at the moment. The job waits until it runs again"
    return ""


def _read_files(services: Services, owner: str, body: JobRequest) -> tuple[Dataset, Dataset | None]:
    """The lines of both files. Raises InvalidDataset with the wrong lines of both."""
    wrong: list[InvalidDataset] = []

    def lines(file_id: str, param: str, min_examples: int) -> Dataset | None:
        def also(good: Dataset) -> Sequence[LineProblem]:
            return services.estimator.problems(good, param)

        try:
            with services.files.verified(owner, file_id) as file:
                return validate(lines_of(file), min_examples=min_examples, param=param, also=also)
        except InvalidDataset as error:
            wrong.append(error)
            return None

    train = lines(body.training_file, "training_file", MIN_EXAMPLES)
    named = body.validation_file
    valid = None if named is None else lines(named, "validation_file", 1)
    if len(wrong) > 1:
        message = "; ".join(f"{error.param}: {error}" for error in wrong)
        problems = [it for error in wrong for it in error.problems]
        raise InvalidDataset(message, problems, count=sum(error.count for error in wrong))
    if train is None or wrong:
        raise wrong[0]
    return train, valid


def _dry_run(
    model: str, wrong: InvalidDataset | None, estimate: JobEstimate | None = None
) -> Document:
    """The appraisal of the job, or everything that is wrong with its files."""
    return {
        "object": "fine_tuning.job.dry_run",
        "model": model,
        "valid": wrong is None,
        "problems": [asdict(problem) for problem in (wrong.problems if wrong else ())],
        "problem_count": wrong.count if wrong else 0,
        "appraisal": estimate and estimate.to_document(),
    }


def _metadata(query: list[tuple[str, str]]) -> Mapping[str, str] | None:
    """The pairs to filter by, in the OpenAI API's form; None: no filter."""
    pairs: dict[str, str] = {}
    for name, value in query:
        if name.startswith("metadata[") and name.endswith("]"):
            pairs[name[len("metadata[") : -1]] = value
        elif name == "metadata" and value == "null":
            return {}
        elif name.startswith("metadata"):
            raise InvalidRequest(
                f"{shown(name)}={shown(value)} is not a filter: write metadata[KEY]=VALUE, or "
                "metadata=null",
                param="metadata",
            )
    return pairs or None
