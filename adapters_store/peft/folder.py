"""Reads tensors of `adapter_model.safetensors` by name, and writes a checkpoint folder.

Reads safetensors and nothing else: PEFT's older `adapter_model.bin` is a pickle, which runs code.
Knows names and dtypes, but not what the tensors mean and no base model.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapters_store.outside_values import BadJson, JsonBounds, read_json
from adapters_store.peft.adapter_config import CONFIG_NAME
from adapters_store.store_errors import InvalidCheckpoint

WEIGHTS_NAME: Final = "adapter_model.safetensors"
LAYER_PREFIX: Final = "base_model.model."
SHARED_PREFIX: Final = "base_model."

MAX_HEADER_BYTES: Final = 2**20
"""Of the JSON before the numbers. An adapter of every linear of a Llama of 405B parameters needs
half of it: 126 layers of 7 linears, with four tensors each of 160 bytes."""
MAX_TENSORS: Final = 8192
MAX_NAME: Final = 256

_MAX_REASON: Final = 200  # characters: a reason may quote the header
# A tensor is an object with two lists, under its name, and with three keys.
_BOUNDS: Final = JsonBounds(objects=7 * MAX_TENSORS + 256, depth=32)
_FLOATS: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Segments of names that say how a model was wrapped when it was saved: PEFT's own name of an
# adapter, torch.compile, FSDP, checkpointing of activations.
_WRAPPERS: Final = frozenset(
    {"default", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
_OF_ADAPTER: Final = re.compile(r"\.(?:lora|vera|randlora)_")
_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def check_file_name(name: str) -> None:
    """Refuse what is a pickle by its name.

    Raises:
        InvalidCheckpoint: naming the file and the remedy.
    """
    if name.lower().endswith(_PICKLES):
        raise InvalidCheckpoint(
            f"{name!r} is a pickle, which runs code when it is read; load it with PEFT where you "
            f"trust it and save it again, which writes {WEIGHTS_NAME}"
        )
    if not name.lower().endswith(".safetensors"):
        raise InvalidCheckpoint(f"{name!r} is no safetensors file: send {WEIGHTS_NAME}")


class PeftTensors:
    """The tensors of an open file, read one at a time, under the names that PEFT gives them.

    Raises:
        InvalidCheckpoint: two tensors have one name, as with two adapters in a file.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._stored: dict[str, str] = {}
        for stored in sorted(file.keys()):
            name = _peft_name(stored)
            if name in self._stored:
                raise InvalidCheckpoint(
                    f"tensors {self._stored[name]!r} and {stored!r} are one and the same in PEFT: "
                    "save one adapter alone"
                )
            self._stored[name] = stored
        self.names: frozenset[str] = frozenset(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it. Raises InvalidCheckpoint: it is missing."""
        if name not in self.names:
            raise InvalidCheckpoint(f"tensor {name!r} is missing")
        return tuple(self._file.get_slice(self._stored[name]).get_shape())

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor as float32.

        Raises:
            InvalidCheckpoint: it is missing, not of `shape`, no 16- or 32-bit float, or not finite.
        """
        stored = self.shape(name)
        if shape is not None and stored != shape:
            raise InvalidCheckpoint(f"tensor {name!r} has shape {list(stored)}, not {list(shape)}")
        dtype = self._file.get_slice(self._stored[name]).get_dtype()
        if dtype not in _FLOATS:
            raise InvalidCheckpoint(
                f"tensor {name!r} is {dtype}, not one of {', '.join(_FLOATS)}: save the adapter in "
                "float32"
            )
        tensor: Tensor = self._file.get_tensor(self._stored[name]).to(torch.float32)
        if not torch.isfinite(tensor).all():
            raise InvalidCheckpoint(f"tensor {name!r} holds a value that is not finite")
        return tensor


def _peft_name(stored: str) -> str:
    """The name that PEFT's `save_pretrained` gives a tensor which other programs named alike."""
    if not _OF_ADAPTER.search(stored):
        return stored
    parts = [part for part in stored.split(".") if part not in _WRAPPERS]
    name = ".".join(parts[1:] if parts[0] == "module" else parts)
    return name if name.startswith(SHARED_PREFIX) else LAYER_PREFIX + name


@contextmanager
def open_tensors(path: Path) -> Iterator[PeftTensors]:
    """Open a safetensors file.

    Raises:
        InvalidCheckpoint: it is no safetensors file, or its header is over a limit.
    """
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield PeftTensors(file)
    except SafetensorError as error:
        raise _no_safetensors(str(error)[:_MAX_REASON]) from error


def _check_header(path: Path) -> None:
    """Bound the header before anything is made of it."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > path.stat().st_size - 8:
            raise _no_safetensors("its header is not whole")
        if length > MAX_HEADER_BYTES:
            raise InvalidCheckpoint(
                f"{WEIGHTS_NAME} has a header of {length} bytes, over the {MAX_HEADER_BYTES} that "
                "are read: save one adapter, without copies of shared matrices"
            )
        text = file.read(length)
    try:
        entries = read_json(text, unique_keys=True, finite=False, bounds=_BOUNDS)
    except BadJson as error:
        raise _no_safetensors(f"its header {error}") from error
    if not isinstance(entries, dict):
        raise _no_safetensors("its header is no JSON object")
    if len(entries) > MAX_TENSORS:
        raise InvalidCheckpoint(
            f"{WEIGHTS_NAME} has {len(entries)} tensors, over the {MAX_TENSORS} that are read: "
            "save one adapter, without copies of shared matrices"
        )
    for name in entries:
        if len(name) > MAX_NAME:
            raise InvalidCheckpoint(
                f"tensor {name[:80]!r}... has a name of {len(name)} characters, over the "
                f"{MAX_NAME} that are read: save the adapter again with PEFT"
            )


def _no_safetensors(reason: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"{WEIGHTS_NAME} is no whole safetensors file ({reason}); pickles are not read: save the "
        "adapter again with PEFT"
    )


def write_folder(folder: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint into an existing folder, as PEFT's `save_pretrained` lays it out."""
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / WEIGHTS_NAME,
        metadata={"format": "pt"},
    )
