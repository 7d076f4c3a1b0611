"""The frozen base model: its figures, its fingerprint, and the linears that an adapter may change.

Knows nothing of files, adapters, tokens or requests.
"""

import hashlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from server.errors import UnsupportedModel

BUILDING: Final = threading.Lock()
"""Held while transformers builds a model: it sets torch's default dtype, which all threads share,
and two builds at once could leave the other's behind."""

_SAMPLES = 4096  # weights of one tensor that the fingerprint reads
_GOLDEN = 2654435761  # 2**32 / golden ratio: its multiples spread evenly over any length


@dataclass(frozen=True)
class TargetLinear:
    """One linear of the decoder: `module(x)` is `x @ W.T + bias`, `W` [out_features, in_features].

    `module` is an `nn.Linear`, or GPT-2's `Conv1D`, which keeps `W` transposed.
    """

    path: str
    module: nn.Module
    in_features: int
    out_features: int


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A frozen causal language model and the facts that other parts ask of it.

    `fingerprint` names the weights, whatever dtype or device they were loaded in. `targets` maps
    module paths to the decoder's linears; the output head and the embeddings are never among them.
    `max_context` counts tokens. `eos_token_ids` are the end tokens of the configuration and of the
    generation configuration; `server.bases.answer_ends` adds those of the tokenizer. `nameless`
    holds ids for which the tokenizer has no token, int64 on the device: they have logits but are
    never generated.
    """

    model: PreTrainedModel
    name: str
    fingerprint: str
    targets: Mapping[str, TargetLinear]
    max_context: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    device: torch.device
    dtype: torch.dtype
    num_layers: int
    num_kv_heads: int
    head_dim: int
    nameless: Tensor | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, name: str, fingerprint: str | None = None) -> "BaseModel":
        """Describe a model that is already built, where it is, and freeze it.

        Raises:
            UnsupportedModel: the config lacks a figure that serving needs.
        """
        model.requires_grad_(False)
        model.eval()
        config = model.config.get_text_config(decoder=True)
        heads = _figure(config, name, "num_attention_heads")
        return cls(
            model=model,
            name=name,
            fingerprint=fingerprint_of(model) if fingerprint is None else fingerprint,
            targets=MappingProxyType(_target_linears(model)),
            max_context=_figure(config, name, "max_position_embeddings"),
            vocab_size=_figure(config, name, "vocab_size"),
            eos_token_ids=_eos_token_ids(model, name),
            device=model.device,
            dtype=model.dtype,
            num_layers=_figure(config, name, "num_hidden_layers"),
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None)
            or _figure(config, name, "hidden_size") // heads,
        )

    @property
    def config(self) -> PretrainedConfig:
        """The decoder's own, also of a model that has an image tower as well."""
        config: PretrainedConfig = self.model.config.get_text_config(decoder=True)
        return config

    def without(self, nameless: Iterable[int]) -> "BaseModel":
        """This model, which generates none of these ids; those that end an answer stay."""
        ids = sorted(set(nameless) - self.eos_token_ids)
        kept = torch.tensor(ids, dtype=torch.int64, device=self.device) if ids else None
        return replace(self, nameless=kept)


def device_works(device: torch.device) -> bool:
    """Whether a process can still use `device`. Ask after an error of torch.

    A kernel's fault ends all use of a CUDA device in the process; other errors, such as memory that
    ran out, do not. Waits for what this thread has launched.
    """
    if device.type != "cuda":
        return True
    try:
        torch.cuda.current_stream().synchronize()
    except RuntimeError:
        return False
    return True


def fingerprint_of(model: PreTrainedModel) -> str:
    """Name the weights of a model: 32 hexadecimal digits.

    SHA-256 over the model type and, for each parameter in order of name, its name, its shape and up
    to 4096 of its entries rounded to bfloat16, so that a checkpoint and its bfloat16 copy are one
    base. It tells checkpoints apart; it does not prove that no entry was touched.
    """
    digest = hashlib.sha256(f"{model.config.model_type}\n".encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {list(parameter.shape)}\n".encode())
        digest.update(_sampled_bytes(parameter.detach()))
    return digest.hexdigest()[:32]


def _sampled_bytes(weight: Tensor) -> bytes:
    flat = weight.reshape(-1)
    if flat.numel() > _SAMPLES:
        places = torch.arange(_SAMPLES, device=flat.device) * _GOLDEN % flat.numel()
        flat = flat[places]
    return flat.to(torch.bfloat16).cpu().view(torch.int16).numpy().astype("<i2").tobytes()


def _target_linears(model: PreTrainedModel) -> dict[str, TargetLinear]:
    decoder = model.get_decoder()
    prefix = next(path for path, module in model.named_modules() if module is decoder)
    targets = {}
    for inner, module in decoder.named_modules():
        path = f"{prefix}.{inner}" if prefix else inner
        if module is model.get_output_embeddings():
            continue
        if isinstance(module, nn.Linear):
            targets[path] = TargetLinear(path, module, module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            targets[path] = TargetLinear(path, module, module.nx, module.nf)
    return targets


def _eos_token_ids(model: PreTrainedModel, label: str) -> frozenset[int]:
    config = model.config.get_text_config(decoder=True)
    last = _figure(config, label, "vocab_size") - 1
    stops: set[int] = set()
    for place in (model.config, config, model.generation_config):
        named = getattr(place, "eos_token_id", None)
        listed = named if isinstance(named, list | tuple | set) else [named]
        for stop in [] if named is None else listed:
            if type(stop) is not int or not 0 <= stop <= last:
                raise UnsupportedModel(
                    f"the {_word(place)} of base model {label!r} has eos_token_id={named!r}: give "
                    f"token ids from 0 to {last}, one or a list, or null"
                )
            stops.add(stop)
    return frozenset(stops)


def _word(place: object) -> str:
    return "config" if isinstance(place, PretrainedConfig) else "generation config"


def _figure(config: PretrainedConfig, label: str, field: str) -> int:
    value = getattr(config, field, None)
    if not isinstance(value, int):
        raise UnsupportedModel(
            f"the config of base model {label!r} ({config.model_type}) has no {field}: "
            "this engine runs attention decoders only"
        )
    return value
