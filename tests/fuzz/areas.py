"""The areas of the fuzzers by name, each with the server that it needs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.bodies import Bodies
from tests.fuzz.checkpoints import Checkpoints
from tests.fuzz.lines import Lines
from tests.fuzz.processes import Processes
from tests.fuzz.raw_http import RawHttp
from tests.fuzz.schema import Schema
from tests.fuzz.stop_texts import StopTexts
from tests.fuzz.target import Target
from tests.fuzz.trial import Fuzzer

ON_ONE_SERVER: Mapping[str, Callable[..., Fuzzer]] = {
    each.name: each for each in (Bodies, Lines, Checkpoints, RawHttp, StopTexts, Schema)
}
"""The areas whose cases leave the server as it was."""

AREAS = (*ON_ONE_SERVER, Processes.name)


@contextmanager
def running(folder: Path, device: str = "cpu") -> Iterator[Target]:
    """A server for the areas that need one. It trains nothing: jobs wait in the queue."""
    target = Target(folder, "--no-worker", "--device", device)
    target.start()
    try:
        yield target
    finally:
        target.end()


@contextmanager
def opened(area: str, folder: Path, *, device: str = "cpu", big: bool = False) -> Iterator[Fuzzer]:
    """The fuzzer of an area. `big` adds cases of megabytes, and longer rounds."""
    if area == Processes.name:
        yield Processes(folder, device, brief=not big)
        return
    with running(folder, device) as target:
        yield ON_ONE_SERVER[area](target, big=big)
