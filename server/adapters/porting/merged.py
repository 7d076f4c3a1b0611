"""An adapter merged into its base: a checkpoint that transformers loads. Knows no PEFT.

The base is read from its files again, since the server may have rounded it to another dtype.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer
from transformers.pytorch_utils import Conv1D

from server.adapters.methods.checked_adapter import CheckedAdapter
from server.bases.base_files import load_stored
from server.bases.base_folder import loadable
from server.bases.model import fingerprint_of
from server.errors import InvalidRequest, UnsupportedModel


def write_merged(adapter: CheckedAdapter, source: str, folder: Path) -> None:
    """Write config, weights and tokenizer into an existing folder, in the dtype of the files.

    Each adapted weight is added up in float64 and rounded once.

    Raises:
        UnsupportedModel: the base's files are gone, or are no longer those that are served.
        InvalidRequest: a merged weight overflows the dtype.
    """
    model = load_stored(source)
    if fingerprint_of(model) != adapter.base.fingerprint:
        raise UnsupportedModel(
            f"the files of base {source!r} are no longer those that this server has loaded: "
            "put them back, or start the server again"
        )
    for linear in adapter.linears:
        _add(model.get_submodule(linear.path), linear.path, adapter.update(linear))
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(loadable(source), trust_remote_code=False)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def _add(module: nn.Module, path: str, update: torch.Tensor) -> None:
    weight = module.get_parameter("weight")
    change = update.t() if isinstance(module, Conv1D) else update
    merged = (weight.double() + change).to(weight.dtype)
    if not torch.isfinite(merged).all():
        raise InvalidRequest(
            f"the merged weight of {path!r} is too large for the base's {weight.dtype}",
            param="format",
        )
    weight.copy_(merged)
