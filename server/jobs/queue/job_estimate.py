"""What a job will take, estimated before it runs. Knows no trainer; numbers and words only."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class JobEstimate:
    """An estimate, and warnings about the files.

    `tokens` are those of the training lines, read once; `trained_tokens` those of all epochs.
    `seconds` is by the speed of this server's last jobs if there were any (`measured`), and
    otherwise by the usual speed of such a device. `adapter_bytes` is the size of the published
    file. `counted` lines were tokenized; if there are more `examples`, the rest is inferred.
    """

    examples: int
    counted: int
    tokens: int
    longest: int
    n_epochs: int
    batch_size: int
    steps: int
    trained_tokens: int
    seconds: int
    measured: bool
    parameters: int
    adapter_bytes: int
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "warnings", tuple(self.warnings))  # a list, as JSON has it

    def to_document(self) -> dict[str, object]:
        """As JSON holds it, and the API shows it."""
        return {**asdict(self), "warnings": list(self.warnings)}

    def sentence(self) -> str:
        basis = "by the speed of earlier jobs" if self.measured else "by rule of thumb"
        return (
            f"Estimated: {self.examples} examples, {self.tokens} tokens in all, {self.n_epochs} "
            f"epochs, {self.steps} steps, {self.trained_tokens} trained tokens; "
            f"{_duration(self.seconds)} of training ({basis}); an adapter of "
            f"{self.adapter_bytes / 1024:.0f} KiB"
        )


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"about {seconds} seconds"
    return f"about {seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
