"""What an engine and a worker on one CUDA device share: the base's weights, and the device's time.

They meet in the home's folder `engines`, under the device's name. On a CPU nothing is shared here:
weights served in their file's own dtype are pages of the file, which the system keeps once.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from transformers import AutoConfig

from server.bases.lending import Lender, Loan, Weights, borrow, device_key
from server.bases.model import BaseModel, locate
from server.bases.tokenizer import ChatTokenizer, load_tokenizer
from server.config import Settings
from server.errors import Unavailable
from server.pulse import Pulse, PulseReader
from server.training.giving_way import GivingWay
from server.training.throttle import Throttle

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 120.0  # until an engine that is started again lends its weights


def open_pulse(settings: Settings, device: torch.device) -> Pulse | None:
    """Where an engine on `device` tells how it fares; None where nobody would look."""
    if device.type != "cuda":
        return None
    folder = settings.home_path / "engines"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Pulse(_path(settings, device, "pulse"))


@contextmanager
def lending(settings: Settings, base: BaseModel, pulse: Pulse | None) -> Iterator[None]:
    """While this is entered, a worker on the base's device may borrow its weights.

    From here on the base's parameters must stay where they are.
    """
    if pulse is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.callback(pulse.close)
        address = _path(settings, base.device, "socket")
        try:
            lender = Lender(Weights.of(base, str(locate(settings.model))), address)
        except OSError as error:
            log.warning("workers take copies of their own of the base: %s: %s", address, error)
        else:
            stack.callback(lender.close)
        yield


class Borrower:
    """A worker's base: on the weights of the engine on its device, or else a copy of its own.

    Args:
        load_own: loads such a copy.
        stop: set when the engine is gone, so that the worker saves its jobs, gives them back and
            ends: to be started again, on the weights of the engine's successor.
    """

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        load_own: Callable[[], tuple[BaseModel, ChatTokenizer]],
        stop: threading.Event,
    ) -> None:
        self._settings = settings
        self._device = device
        self._load_own = load_own
        self._stop = stop
        self._giving: GivingWay | None = None
        self.bereft = False  # whether the engine that lent the weights is gone

    def load(self) -> tuple[BaseModel, ChatTokenizer]:
        """The base, which gives way to the engine's requests, and its tokenizer.

        Raises:
            UnsupportedModel: it cannot be loaded.
        """
        base, tokenizer = self._borrowed() or self._load_own()
        with contextlib.suppress(FileNotFoundError):  # nobody serves on this device
            pulse = PulseReader(_path(self._settings, self._device, "pulse"))
            self._giving = GivingWay(Throttle(self._settings.training_latency), pulse)
            self._giving.slow_down(base)
        return base, tokenizer

    def positions(self, most: int) -> int:
        """See `GivingWay.positions`."""
        return most if self._giving is None else self._giving.positions(most)

    def _borrowed(self) -> tuple[BaseModel, ChatTokenizer] | None:
        if self._device.type != "cuda":
            return None
        place = locate(self._settings.model)
        try:
            loan = borrow(
                _path(self._settings, self._device, "socket"),
                str(place),
                lambda: AutoConfig.from_pretrained(place, trust_remote_code=False),
                patience_s=_PATIENCE_S,
                stop=self._stop,
            )
        except Unavailable as reason:
            log.warning("the worker takes a copy of its own of the base: %s", reason)
            return None
        log.info("the worker trains on the weights of the engine on %s", self._device)
        threading.Thread(target=self._watch, args=(loan,), daemon=True).start()
        return loan.base, load_tokenizer(self._settings.model)

    def _watch(self, loan: Loan) -> None:
        loan.wait()
        log.warning(
            "the engine whose weights the worker trains on is gone: the worker ends as well"
        )
        self.bereft = True
        self._stop.set()


def _path(settings: Settings, device: torch.device, kind: str) -> Path:
    return settings.home_path / "engines" / f"{device_key(device)}.{kind}"
