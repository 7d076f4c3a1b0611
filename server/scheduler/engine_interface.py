"""What the serving loop needs of an engine: to launch steps and to read their outputs later."""

from collections.abc import Sequence
from typing import Protocol

from server.engine.sequence import Chunk, StepOutput


class StepFuture(Protocol):
    """A step that was launched: `server.engine.launched_step.LaunchedStep`."""

    def outputs(self) -> list[StepOutput]:
        """One output for each chunk; waits until the step has run."""
        ...


class StepRunner(Protocol):
    """The engine: `server.engine.runner.Runner`."""

    @property
    def ahead(self) -> int:
        """How many steps, 0 or 1, may be in flight while the next is planned and launched."""
        ...

    def launch(self, chunks: Sequence[Chunk]) -> StepFuture:
        """Start a step. From then on its sequences count as computed, with a pending token."""
        ...
