"""The worker in an engine's process, as the API sees it. Knows no training."""

from typing import cast

from server.errors import Unavailable
from server.replicas.replica import Replica


class WorkerProxy:
    """Who trains in a replica's process."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    @property
    def alive(self) -> bool:
        """True while it runs; it does not while its engine is being started again."""
        return self._told()[0]

    @property
    def restarts(self) -> int:
        """How often it was started again, by itself or with its engine."""
        return self._replica.restarts + self._told()[1]

    def _told(self) -> tuple[bool, int]:
        try:
            return cast("tuple[bool, int] | None", self._replica.link.call("worker")) or (False, 0)
        except Unavailable:
            return False, 0
