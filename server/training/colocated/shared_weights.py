"""Builds a second model over a base's weights, so that they are in memory once."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from server.bases.model import BUILDING, BaseModel
from server.errors import UnsupportedModel


def twin_of(base: BaseModel) -> BaseModel:
    """The same parameters in modules of their own: hooks, adapters and attention are apart.

    The parameters are the same objects, so that what happens to their memory later happens to both.
    Buffers, which are small and which a model may change, are copies.

    Raises:
        UnsupportedModel: the model keeps tensors where neither parameters nor buffers are.
    """
    config = copy.deepcopy(base.model.config)
    with BUILDING, torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", trust_remote_code=False
        )
    for name, parameter in base.model.named_parameters(remove_duplicate=False):
        owner, leaf = _owner(model, name)
        owner._parameters[leaf] = parameter
    for name, buffer in base.model.named_buffers(remove_duplicate=False):
        owner, leaf = _owner(model, name)
        owner._buffers[leaf] = buffer.clone()
    _check_whole(model, base.name)
    twin = BaseModel.of(model, base.name, base.fingerprint)
    # They may come from a file of their own, which the configuration does not have.
    return replace(twin, eos_token_ids=base.eos_token_ids, nameless=base.nameless)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _check_whole(model: nn.Module, name: str) -> None:
    for path, module in model.named_modules():
        tensors = {**module._parameters, **module._buffers, **vars(module)}
        for leaf, tensor in tensors.items():
            if isinstance(tensor, Tensor) and tensor.is_meta:
                raise UnsupportedModel(
                    f"base model {name!r} keeps {path}.{leaf} neither as a parameter nor as a "
                    "buffer, so it cannot be trained on in the engine's process: add "
                    "--worker-process yes, or --no-worker"
                )
