"""One copy of a base's weights for several processes: who has it lends it, others build on it.

What crosses is handles of memory, not numbers: CUDA IPC on a GPU, shared memory on a CPU, as
`torch.multiprocessing` makes them. They travel over a Unix socket that only its user may open. The
connection stays open for as long as the memory is used: its end tells a borrower that the lender is
gone. What was borrowed stays readable then (the driver counts who has it open), but it is nobody's
any more: finish what is under way and let go. Knows no engine and no training.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from server.bases.model import BaseModel, fingerprint_of
from server.errors import Unavailable

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.2


@dataclass(frozen=True)
class _Place:
    """Where one parameter lies in a storage, in entries."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Buffer:
    """A buffer by value: rotary frequencies and the like are small, and a model may change them."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    content: bytes

    @classmethod
    def of(cls, buffer: Tensor) -> "_Buffer":
        plain = buffer.detach().cpu().contiguous().reshape(-1)
        return cls(buffer.dtype, tuple(buffer.shape), plain.view(torch.uint8).numpy().tobytes())

    def tensor(self) -> Tensor:
        if not self.content:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(bytearray(self.content), dtype=self.dtype).view(self.shape)


@dataclass(frozen=True)
class Weights:
    """All parameters and buffers of a base; pickled, the parameters stay where they are.

    `source` is what the base was loaded from, `fingerprint` its own, and `served` that of the
    weights as they are in memory, which a borrower compares.
    """

    source: str
    name: str
    fingerprint: str
    served: str
    eos_token_ids: frozenset[int]
    storages: Sequence[Tensor]
    places: Mapping[str, _Place]
    buffers: Mapping[str, _Buffer]

    @classmethod
    def of(cls, base: BaseModel, source: str) -> "Weights":
        """Those of `base`, which must outlive them."""
        storages: dict[tuple[int, torch.dtype], int] = {}
        flats: list[Tensor] = []
        places: dict[str, _Place] = {}
        for name, parameter in base.model.named_parameters(remove_duplicate=False):
            storage, dtype = parameter.untyped_storage(), parameter.dtype
            number = storages.setdefault((storage.data_ptr(), dtype), len(flats))
            if number == len(flats):
                flats.append(torch.empty(0, dtype=dtype, device=parameter.device).set_(storage))
            shape, stride = tuple(parameter.shape), tuple(parameter.stride())
            places[name] = _Place(number, int(parameter.storage_offset()), shape, stride)
        buffers = {name: _Buffer.of(buffer) for name, buffer in base.model.named_buffers()}
        served = fingerprint_of(base.model)
        return cls(
            source,
            base.name,
            base.fingerprint,
            served,
            base.eos_token_ids,
            flats,
            places,
            buffers,
        )

    @property
    def bytes(self) -> int:
        """Of the parameters in memory, with what lies between them."""
        return sum(flat.untyped_storage().nbytes() for flat in self.storages)

    def build(self, config: PretrainedConfig) -> BaseModel:
        """A model of its own over the same memory.

        Raises:
            Unavailable: the config is another model's, or the memory does not hold what it should.
        """
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, attn_implementation="sdpa", trust_remote_code=False
            )
        wanted = dict(model.named_parameters(remove_duplicate=False))
        if {name: tuple(it.shape) for name, it in wanted.items()} != {
            name: place.shape for name, place in self.places.items()
        }:
            raise Unavailable(f"the weights lent are of another shape than {self.name!r} here")
        made: dict[_Place, nn.Parameter] = {}  # what is tied stays one
        for name, place in self.places.items():
            if place not in made:
                flat = self.storages[place.storage]
                weight = flat.as_strided(place.shape, place.stride, place.offset)
                made[place] = nn.Parameter(weight, requires_grad=False)
            owner, leaf = _owner(model, name)
            owner._parameters[leaf] = made[place]
        device = self.storages[0].device
        for name, buffer in self.buffers.items():
            owner, leaf = _owner(model, name)
            owner._buffers[leaf] = buffer.tensor().to(device)
        _check_whole(model, self.name)
        config.dtype = self.storages[0].dtype
        base = BaseModel.of(model, self.name, self.fingerprint)  # type: ignore[arg-type]
        if fingerprint_of(base.model) != self.served:
            raise Unavailable("the memory that was lent does not hold the lender's weights")
        return replace(base, eos_token_ids=self.eos_token_ids)  # a file of their own may say them


class Lender:
    """Gives `weights` to whoever asks at `address` (a path), until closed.

    Raises:
        OSError: no socket can be made there; the path may be too long.
    """

    def __init__(self, weights: Weights, address: Path) -> None:
        self._weights = weights
        self._address = address
        address.unlink(missing_ok=True)  # left by one that was killed
        self._listener = Listener(str(address), family="AF_UNIX")
        address.chmod(0o600)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lender", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more askers. Who has borrowed hears of it when this process ends."""
        self._closed = True
        with contextlib.suppress(OSError):  # wakes the thread
            Client(str(self._address), family="AF_UNIX").close()
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except OSError:
                log.exception("weights cannot be lent just now")
                time.sleep(_RETRY_S)
                continue
            threading.Thread(target=self._lend, args=(connection,), daemon=True).start()

    def _lend(self, connection: "Connection[object, object]") -> None:
        with connection, contextlib.suppress(EOFError, OSError):
            if not self._closed:
                connection.send(self._weights)
                connection.recv_bytes()  # nothing ever comes but the end


class Loan:
    """A base on borrowed weights; good while the lender lives."""

    def __init__(self, base: BaseModel, connection: "Connection[object, object]") -> None:
        self.base = base
        self._connection = connection

    def wait(self) -> None:
        """Return when the lender is gone."""
        with contextlib.suppress(EOFError, OSError):
            self._connection.recv_bytes()

    def close(self) -> None:
        """Say that it is no longer needed; drop `base` as well."""
        self._connection.close()


def borrow(
    address: Path,
    source: str,
    config: Callable[[], PretrainedConfig],
    *,
    patience_s: float,
    stop: threading.Event,
) -> Loan:
    """The base that is lent at `address`.

    A socket at which nobody listens was left by an engine that is being started again: it is waited
    for.

    Args:
        source: what the base must have been loaded from; config: gives its configuration.
        patience_s: how long to wait at most; `stop` ends it sooner.

    Raises:
        Unavailable: nobody lends it here, and why.
    """
    connection = _connect(address, patience_s, stop)
    try:
        weights = connection.recv()
        assert isinstance(weights, Weights)
        if weights.source != source:
            raise Unavailable(f"the engine serves another base: {weights.source}, not {source}")
        return Loan(weights.build(config()), connection)
    except Unavailable:
        connection.close()
        raise
    except Exception as error:  # whatever CUDA or pickle make of handles that do not open
        connection.close()
        raise Unavailable(f"the engine's memory cannot be opened: {error}") from error


def device_key(device: torch.device) -> str:
    """A name of the device, the same in every process of this machine."""
    if device.type != "cuda":
        return device.type
    return f"cuda-{torch.cuda.get_device_properties(device).uuid}"


def _connect(
    address: Path, patience_s: float, stop: threading.Event
) -> "Connection[object, object]":
    end = time.monotonic() + patience_s
    while True:
        try:
            return Client(str(address), family="AF_UNIX")
        except FileNotFoundError:
            raise Unavailable(f"no engine lends its weights at {address}") from None
        except OSError as error:
            if time.monotonic() > end or stop.wait(_RETRY_S):
                raise Unavailable(f"no engine answers at {address} ({error})") from error


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _check_whole(model: nn.Module, name: str) -> None:
    """Refuse a model that keeps tensors where neither parameters nor buffers are."""
    for path, module in model.named_modules():
        held = {**module._parameters, **module._buffers, **vars(module)}
        for leaf, tensor in held.items():
            if isinstance(tensor, Tensor) and tensor.is_meta:
                raise Unavailable(f"{path}.{leaf} of {name!r} is no weight that could be lent")
