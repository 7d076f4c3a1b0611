"""What each owner may use by the settings. Imports no torch."""

from server.config import Settings
from server.db.owner_limits import Limits


def owner_limits(settings: Settings) -> Limits:
    """The limits of owners that have none of their own."""
    return Limits(
        requests_a_minute=settings.max_requests_a_minute,
        tokens_a_minute=settings.max_tokens_a_minute,
        requests_at_once=settings.max_requests_at_once,
        adapters=settings.max_adapters,
        files=settings.max_files,
        stored_bytes=settings.max_stored_mb * 2**20,
        running_jobs=settings.max_running_jobs,
        waiting_jobs=settings.max_waiting_jobs,
        training_tokens_a_day=settings.max_training_tokens_a_day,
    )
