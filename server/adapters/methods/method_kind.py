"""One method as all other parts know it: its description, its variants, and its form in PEFT."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from server.adapters.methods.checked_adapter import CheckedAdapter
from server.adapters.methods.method import Method
from server.adapters.methods.peft.incoming import Imported, IncomingCheckpoint
from server.adapters.methods.peft.outgoing import PeftCheckpoint
from server.bases.model import TargetLinear
from server.jobs.queue.method_spec import MethodSpec

Options = Mapping[str, float | str]


def _as_they_are(options: Options, linears: Iterable[TargetLinear]) -> Options:
    return options


@dataclass(frozen=True)
class PeftForm:
    """PEFT's form of a method: `peft_type` as configs name it, and how to read it.

    `read` raises InvalidCheckpoint, naming the tensor or field at fault. `write` is None where the
    form is a LoRA, which any thin product is.
    """

    peft_type: str
    read: Callable[[IncomingCheckpoint], Imported]
    write: Callable[[CheckedAdapter], PeftCheckpoint] | None = None


@dataclass(frozen=True)
class MethodKind:
    """A method. `variant_of` reads the variant back from a manifest's options.

    `settled` turns options that depend on the targeted linears into numbers. `peft` is None where
    PEFT has no such method.
    """

    spec: MethodSpec
    variant_of: Callable[[Mapping[str, str]], Method]
    settled: Callable[[Options, Iterable[TargetLinear]], Options] = _as_they_are
    peft: PeftForm | None = None
