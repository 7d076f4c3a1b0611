"""What the loop needs of an engine: steps that are launched, and what each of them gave."""

from collections.abc import Sequence
from typing import Protocol

from server.engine.sequence import Chunk, StepOutput


class StepFuture(Protocol):
    """A launched step: `server.engine.launched_step.LaunchedStep`."""

    def outputs(self) -> list[StepOutput]:
        """What each chunk gave; waits until the step has run."""
        ...


class StepRunner(Protocol):
    """The engine: `server.engine.runner.Runner`."""

    @property
    def ahead(self) -> int:
        """How many steps, 0 or 1, may be in the air while the next is planned and launched."""
        ...

    def launch(self, chunks: Sequence[Chunk]) -> StepFuture:
        """Start a step. Its sequences count as computed, with a pending token, from then on."""
        ...
