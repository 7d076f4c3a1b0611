"""A worker's side of the queue: claim a job, keep it, give it back or end it.

A worker claims a job for a lease, and heartbeats renew it. When the lease ends, the next claim
takes the job over with a higher `attempt`. From then on every change by the old worker is refused
(LeaseLost), in the transaction that would have written it.

One clock keeps all leases (see `Database.now`). If it jumps ahead, a living worker may lose its job
to another, which resumes from the last checkpoint. If it jumps back, a dead worker's job waits at
most one more lease. Neither can make a job end twice, or never.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from sqlalchemy import select

from server.db.session import Database
from server.db.tables import CheckpointRow, JobRow
from server.db.usage_rows import HOUR_S, UsageKey, add_usage
from server.errors import LeaseLost
from server.jobs.queue.evaluation import Evaluation, Sample
from server.jobs.queue.job import Checkpoint, Job, JobStatus, Level, StopRequest
from server.jobs.queue.quotas import Quotas
from server.jobs.queue.training_metrics import TrainingMetrics
from server.jobs.queue.transitions import JobChange, has_claimable, settle_lost_jobs, take_next


class Claims:
    """What workers do with the jobs of all owners.

    Args:
        quotas: what owners may train.
    """

    def __init__(self, database: Database, quotas: Quotas | None = None) -> None:
        self._database = database
        self._quotas = quotas or Quotas()

    def claim(self, worker: str, lease_s: float, *, busy: bool = False) -> Job | None:
        """Take the job that is next, or None; no other worker gets it while the lease lasts.

        Jobs whose worker was lost come first. Then come those of the owner with the fewest running
        jobs; among such owners, of the one whose last start is longest ago; then the oldest job.
        An owner with as many running jobs as it may have is passed over.

        Args:
            busy: the worker has jobs already. If the next one may have killed its last workers, a
                busy worker gets none: that job waits for one that has no other to lose.
        """
        with self._database.transaction() as session:
            now = self._database.now(session)
            settle_lost_jobs(session, worker, now, busy)
            running = self._quotas.defaults.running_jobs
            row = take_next(session, worker, lease_s, now, busy, running)
            if row is None:
                return None
            attempt = f", attempt {row.attempt}" if row.attempt > 1 else ""
            JobChange(session, row, now).add_event("info", f"Fine-tuning job started{attempt}")
            return Job.from_row(row)

    def has_claimable(self) -> bool:
        """Whether it is worth to `claim`. Only reads, so that it can be asked often."""
        with self._database.reading() as session:
            return has_claimable(
                session, self._database.now(session), self._quotas.defaults.running_jobs
            )

    def abandon(self, worker: str, how: str) -> None:
        """End the leases of a worker that is known to be dead, so that no job waits for them.

        Args:
            how: it died, for the jobs' events.
        """
        with self._database.transaction() as session:
            now = self._database.now(session)
            held = (JobRow.status == JobStatus.RUNNING.value) & (JobRow.worker == worker)
            for row in session.scalars(select(JobRow).where(held).with_for_update()).all():
                JobChange(session, row, now).lose_worker(how)

    def heartbeat(
        self,
        job: Job,
        *,
        step: int | None = None,
        estimated_finish: int | None = None,
        trained_tokens: int | None = None,
    ) -> StopRequest | None:
        """Renew the lease, and record how far the job is. Return what its owner has asked for.

        Raises:
            LeaseLost: the job is no longer this attempt's.
        """
        with self._change(job) as change:
            row = change.row
            row.lease_until = change.now + (row.lease_s or 0)
            if step is not None and step > row.step:
                row.step, row.lost_leases = step, 0
            if estimated_finish is not None:
                row.estimated_finish = estimated_finish
            if trained_tokens is not None:
                _count_training(change, trained_tokens)
            return Job.from_row(row).stop_request

    def append_event(
        self, job: Job, level: Level, message: str, metrics: TrainingMetrics | None = None
    ) -> None:
        """Add an event to a job; with metrics it is of type "metrics". Raises LeaseLost."""
        with self._change(job) as change:
            if metrics is None:
                change.add_event(level, message)
            else:
                change.add_event(level, message, "metrics", metrics.to_document())

    def add_checkpoint(
        self, job: Job, step: int, model: str, metrics: TrainingMetrics
    ) -> Checkpoint | None:
        """Record an adapter that the job published under the id `model`. Raises LeaseLost.

        None: it is recorded already. A job that resumes from before several of its checkpoints
        comes past each of them again.
        """
        with self._change(job) as change:
            same = CheckpointRow.job == job.id, CheckpointRow.model == model
            if change.session.scalar(select(CheckpointRow.id).where(*same)) is not None:
                return None
            checkpoint = CheckpointRow(
                id=f"ftckpt_{secrets.token_hex(12)}",
                owner=job.owner,
                job=job.id,
                created_at=int(change.now),
                step=step,
                model=model,
                metrics=metrics.to_document(),
            )
            change.session.add(checkpoint)
            change.session.flush()
            return Checkpoint.from_row(checkpoint)

    def release(self, job: Job) -> None:
        """Give a job back because its worker shuts down. Raises LeaseLost."""
        with self._change(job) as change:
            change.requeue_or_pause("The worker shut down; the job waits for a worker")

    def park(self, job: Job) -> Job:
        """Give back a job that was paused and saved. Raises LeaseLost."""
        with self._change(job) as change:
            return change.requeue_or_pause("The job waits for a worker")

    def add_results(self, job: Job, file_id: str) -> None:
        """Name the file of the job's metrics. Raises LeaseLost."""
        with self._change(job) as change:
            change.row.result_file = file_id

    def record_plan(self, job: Job, plan: Mapping[str, object]) -> None:
        """Record every option as it is used. Raises LeaseLost."""
        with self._change(job) as change:
            change.row.plan = dict(plan)

    def record_evaluation(
        self, job: Job, evaluation: Evaluation, level: Level, message: str
    ) -> None:
        """Record how good the adapter is, with an event if that is new. Raises LeaseLost."""
        document = evaluation.to_document()
        with self._change(job) as change:
            if change.row.judgement != document:
                change.row.judgement = document
                change.add_event(level, message)

    def add_samples(self, job: Job, samples: Sequence[Sample], failure: str = "") -> None:
        """Record answers once, with an event for each, or for their `failure`. Raises LeaseLost."""
        with self._change(job) as change:
            if change.row.samples is not None:
                return
            change.row.samples = [sample.to_document() for sample in samples]
            for sample in samples:
                change.add_event("info", sample.sentence(), data=sample.to_document())
            if failure:
                change.add_event("warn", failure)

    def finish(self, job: Job, fine_tuned_model: str, trained_tokens: int) -> Job:
        """End a job whose adapter is published as `fine_tuned_model`. Raises LeaseLost."""
        with self._change(job) as change:
            change.row.fine_tuned_model = fine_tuned_model
            _count_training(change, trained_tokens)
            change.add_event("info", f"New fine-tuned model created: {fine_tuned_model}")
            return change.end(JobStatus.SUCCEEDED, "The job has successfully completed")

    def fail(self, job: Job, code: str, message: str, param: str | None = None) -> Job:
        """End a job without an adapter. Raises LeaseLost."""
        with self._change(job) as change:
            return change.fail(code, message, param)

    def stop(self, job: Job) -> Job:
        """End a running job that was cancelled. Raises LeaseLost."""
        with self._change(job) as change:
            return change.cancel()

    @contextmanager
    def _change(self, job: Job) -> Iterator[JobChange]:
        """Change a job, if it is still this attempt's.

        Raises:
            LeaseLost: the job was taken over, or has ended.
        """
        with self._database.transaction() as session:
            row = session.scalar(select(JobRow).where(JobRow.id == job.id).with_for_update())
            if row is None or row.attempt != job.attempt or row.status != JobStatus.RUNNING:
                state = "gone" if row is None else f"{row.status}, attempt {row.attempt}"
                lost = f"job {job.id} no longer belongs to attempt {job.attempt}"
                raise LeaseLost(f"{lost}: it is {state}")
            yield JobChange(session, row, self._database.now(session))


def _count_training(change: JobChange, trained_tokens: int) -> None:
    """Record how many tokens the job has trained on, and count what is new for its owner. A job
    that resumes from before trains some again: those count once, and the record never falls."""
    row, before = change.row, change.row.trained_tokens or 0
    if row.trained_tokens is None or trained_tokens > before:
        row.trained_tokens = trained_tokens
    if trained_tokens > before:
        hour = int(change.now // HOUR_S) * HOUR_S
        at = UsageKey(
            row.owner, row.key or "", row.user or "", row.suffix or row.model.partition("@")[0]
        )
        add_usage(change.session, [(hour, at, {"training": trained_tokens - before})])
