"""What a server's worker is between jobs: it waits for the next one, without torch or a base."""

import logging
import select
import sys
from contextlib import closing

from server.config import Settings
from server.db.session import Database
from server.errors import Unavailable
from server.jobs.queue.job_queue import JobQueue
from server.jobs.queue.quotas import Quotas
from server.loop_progress import LOAD_S, LONG_SILENCE_S, STEP_S, Progress
from server.wiring.default_limits import owner_limits
from server.wiring.process import exit_on_sigterm, wait_for_servers_end

log = logging.getLogger(__name__)


def wait_for_job(settings: Settings, progress: Progress) -> None:
    """Return once there is a job to claim. Raises SystemExit if the server ends that started this.

    The memory of torch and of a base is thus taken only while it is used.
    """
    exit_on_sigterm()
    with closing(Database(settings.database)) as database:
        queue = JobQueue(database, Quotas(owner_limits(settings)))
        while not _has_job(queue):
            progress.begin("waiting for a job", settings.worker_poll_s + STEP_S)
            readable, _, _ = select.select([sys.stdin], [], [], settings.worker_poll_s)
            if readable:  # the server says nothing, so it has ended
                wait_for_servers_end()
                raise SystemExit(0)
    progress.begin("the start of the worker", LOAD_S, LONG_SILENCE_S)


def _has_job(queue: JobQueue) -> bool:
    try:
        return queue.has_claimable()
    except Unavailable as error:
        log.warning("the queue cannot be reached: %s", error)
        return False
