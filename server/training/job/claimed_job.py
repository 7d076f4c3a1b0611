"""The first phase of a job: read its files, resume it, and score what it starts from."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import cast

from server.adapters.memory.matrices import SharedBases
from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.job.job_output import JobOutput
from server.training.job.job_phase import JobPhase
from server.training.job.run_report import updated
from server.training.job.running_job import RunningJob, StepReporter
from server.training.job.start import start_of
from server.training.job.training_setup import TrainingSetup, prepare

_READ_S, _READ_SPEED = 60.0, 50_000  # bytes in a second, on a slow machine
_EVENTS_READ = 50  # from the newest; metrics are among them unless many attempts were lost


class ClaimedJob(JobPhase):
    """A job of which nothing has been read. All that an earlier attempt did is on the disk."""

    def prepare(self, base: BaseModel, tokenizer: ChatTokenizer, shared: SharedBases) -> RunningJob:
        """Read the files, and resume from the last checkpoint if there is one.

        Raises:
            InvalidRequest, InvalidDataset, TrainingFailed: the job cannot be trained.
            AdapterNotFound, AdapterCorrupt: the adapter that it continues is gone, or damaged.
            LeaseLost, JobCancelled, JobPaused: it is not to be worked on, or not now.
        """
        services, job = self.claim.services, self.claim.job
        self.claim.heartbeat.check()
        self._say_how_long()
        start = start_of(job, services.store, services.served_name, services.may_copy)
        sources = services.files, base, tokenizer
        setup = prepare(job, *sources, max_rank=services.max_rank, shared=shared, start=start)
        services.queue.record_plan(job, setup.options())
        metrics, reported = self._resume(setup)
        output = JobOutput(self.claim, setup)
        step = setup.trainer.step
        if step in output.milestones:  # the checkpoint was saved, perhaps before it was published
            output.publish_checkpoint(step, metrics)
        reporter = StepReporter(self.claim, reported)
        first = setup.trainer.start()
        if first is not None:
            metrics = updated(metrics, first)
            reporter.report(first)
        evaluation = output.record_baseline(first)
        if evaluation.held_out:
            metrics = replace(metrics, base_valid_loss=evaluation.base_loss)
        running = RunningJob(self.claim, setup, output, reporter, evaluation, metrics)
        running.save_if_due()
        self.claim.heartbeat.check()
        return running

    def _say_how_long(self) -> None:
        """Reading and tokenising take a time that grows with the files."""
        services, job = self.claim.services, self.claim.job
        names = filter(None, (job.training_file, job.validation_file))
        size = sum(services.files.get(job.owner, name).bytes for name in names)
        services.progress.begin(f"reading the files of job {job.id}", _READ_S + size / _READ_SPEED)

    def _resume(self, setup: TrainingSetup) -> tuple[TrainingMetrics, int]:
        """Set the trainer to the newest checkpoint that fits.

        Returns: the metrics at its step, and the last step that an earlier attempt reported.
        """
        claim, folder, trainer = self.claim, self.claim.folder, setup.trainer
        checkpoint = folder.checkpoints.newest()
        if checkpoint is None:
            claim.add_event("info", setup.summary())
            folder.metrics.clear()
            return TrainingMetrics(0), self._last_reported_step()
        if not trainer.fits(checkpoint):
            message = "The checkpoint was made with other data or options. Training starts over"
            claim.add_event("warn", message)
            folder.clear()
            return TrainingMetrics(0), -1
        trainer.restore(checkpoint)
        with suppress(OSError):  # a step that is repeated is written again
            folder.metrics.cut(trainer.step)
        claim.add_event("info", f"Resuming from step {trainer.step} of {trainer.total_steps}")
        document = cast(Mapping[str, object], checkpoint.state["figures"])
        return TrainingMetrics.from_document(document), self._last_reported_step()

    def _last_reported_step(self) -> int:
        """What an earlier attempt reported is not reported again."""
        job, queue = self.claim.job, self.claim.services.queue
        events = queue.events(job.owner, job.id, limit=_EVENTS_READ).items
        steps = (event.data["step"] for event in events if event.type == "metrics" and event.data)
        return max((int(str(step)) for step in steps), default=-1)
