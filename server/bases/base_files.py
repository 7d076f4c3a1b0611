"""Load the base model from its files: embedded, in a folder, or from the hub.

Knows nothing of adapters, tokens or requests. Any causal language model that transformers builds
without code of the model's own will do. What cannot be served is refused in one sentence.
"""

import logging
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from server.bases.base_folder import label_of, loadable
from server.bases.base_place import locate
from server.bases.cpu_speed import cpu_speed
from server.bases.model import BUILDING, BaseModel, fingerprint_of
from server.bases.short_names import SHORT_NAMES, name_of
from server.errors import UnsupportedModel

log = logging.getLogger(__name__)


def load_base(
    source: str | Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype | Literal["auto"] = "auto",
    attention: str = "sdpa",
) -> BaseModel:
    """Load `source`: "porch" (the embedded model), a folder, a GGUF file, or a hub id.

    `dtype` "auto" is as stored. But on a CPU it is float32, unless the files are in bfloat16 and a
    measurement shows that this CPU is faster with it (`server.bases.cpu_speed`).
    `attention` is the name of an attention function that transformers knows.

    Raises:
        UnsupportedModel: the model cannot be found, built or served; one sentence says why.
    """
    place, label = loadable(source), label_of(source)
    # As stored first: the fingerprint must not see the rounding of the dtype that is served.
    model = _build(place, label)
    fingerprint = fingerprint_of(model)
    if dtype == "auto" and torch.device(device).type == "cpu":
        dtype = _dtype_on_cpu(model, label)
    if isinstance(dtype, torch.dtype):
        _cast(model, dtype)
    nn.Module.to(model, device)
    _check_behaviour(model, label)
    if attention != "sdpa":
        model.set_attn_implementation(attention)
    return BaseModel.of(model, _name(source, label, fingerprint), fingerprint)


def _name(source: str | Path, label: str, fingerprint: str) -> str:
    """The short name of these weights, wherever they come from, or else `label`."""
    name = name_of(fingerprint)
    if source in SHORT_NAMES and name != source:
        raise UnsupportedModel(
            f"the file of base model {str(source)!r} holds other weights than that name means: "
            f"delete {locate(source)}, and `verandah fetch {source}` brings it again"
        )
    return name or label


def outline_base(source: str | Path) -> BaseModel:
    """Describe a base by its configuration alone: its modules and shapes on torch's meta device.

    `source` is as in `load_base`, or a configuration file. Takes no memory, whatever the size, and
    reads no weights: there is no fingerprint. What would be refused for its weights or for how it
    behaves is described all the same.

    Raises:
        UnsupportedModel: no configuration, or not a causal language model's.
    """
    file = Path(source).expanduser()
    alone = file.is_file() and file.suffix.lower() != ".gguf"
    place: Path | str = file if alone else loadable(source)
    label = str(source) if alone else label_of(source)
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        _check_decoder(config, label)
        with BUILDING, torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=config.dtype or torch.float32, trust_remote_code=False
            )
    except UnsupportedModel:
        raise
    except Exception as error:  # see `_build`
        raise UnsupportedModel(f"cannot outline model {label!r}: {_reason(error)}") from error
    return BaseModel.of(model, label, fingerprint="")


def load_stored(source: str | Path) -> PreTrainedModel:
    """The model of `source` (as in `load_base`) on the CPU, in the dtype of its files.

    Raises:
        UnsupportedModel: it cannot be found or built.
    """
    return _build(loadable(source), label_of(source))


def check_config(source: str | Path) -> None:
    """Read only the configuration of `source`, as in `load_base`.

    Raises:
        UnsupportedModel: it cannot be found or read, or the model cannot be served.
    """
    _config(loadable(source), label_of(source))


def _config(place: Path | str, label: str) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        _forget_usual_ends(config, place)
    except Exception as error:  # see `_build`
        raise UnsupportedModel(f"cannot load base model {label!r}: {_reason(error)}") from error
    _check_decoder(config, label)
    _check_precision(config, label)
    return cast(PretrainedConfig, config)


def _build(place: Path | str, label: str) -> PreTrainedModel:
    """Build the model on the CPU, its weights as stored."""
    config = _config(place, label)
    try:
        with BUILDING:
            loaded = AutoModelForCausalLM.from_pretrained(
                place,
                config=config,
                dtype="auto",
                attn_implementation="sdpa",
                trust_remote_code=False,
                output_loading_info=True,
            )
    # transformers may raise any error, according to the files; users get one sentence.
    except Exception as error:
        raise UnsupportedModel(f"cannot load base model {label!r}: {_reason(error)}") from error
    model, report = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UnsupportedModel(
            f"the files of base model {label!r} lack {len(missing)} weights, {missing[0]!r} first"
        )
    return model


def _check_decoder(config: PretrainedConfig, label: str) -> None:
    if config.is_encoder_decoder:
        raise UnsupportedModel(
            f"base model {label!r} is an encoder-decoder ({config.model_type}): "
            "give a causal language model"
        )


def _forget_usual_ends(config: PretrainedConfig, place: Path | str) -> None:
    """Drop the end token that a class of models usually has, and that no file names for this one:
    in another vocabulary it is a token like any other.
    """
    stated, _ = PretrainedConfig.get_config_dict(place)
    inner = stated.get("text_config") or {}
    for part in (config, config.get_text_config(decoder=True)):
        if "eos_token_id" not in stated and "eos_token_id" not in inner:
            part.eos_token_id = None


def _check_precision(config: PretrainedConfig, label: str) -> None:
    if getattr(config, "quantization_config", None):
        raise UnsupportedModel(
            f"base model {label!r} is stored quantised: give its bfloat16 or float16 checkpoint"
        )


def _reason(error: Exception) -> str:
    """One sentence from an exception of transformers, whose messages run to pages."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in text:
        return "it needs code of its own (trust_remote_code), which this server never runs"
    if text.startswith("Unrecognized configuration class"):
        return "it is not a causal language model"
    if "couldn't connect" in text:
        return "the hub is out of reach and no copy is in the local cache; give a folder instead"
    return text.split(". ")[0][:300]


def _dtype_on_cpu(model: PreTrainedModel, label: str) -> torch.dtype:
    if model.dtype != torch.bfloat16:
        return torch.float32
    speed = cpu_speed(model)
    log.info("%s runs in %s: %s", label, str(speed.dtype).removeprefix("torch."), speed)
    return speed.dtype


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the weights, not the buffers: rotary frequencies must stay float32."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


@torch.inference_mode()
def _check_behaviour(model: PreTrainedModel, label: str) -> None:
    """Refuse a model whose logits are not finite, or change when a later token does."""
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    prompt = torch.arange(1, 9, device=model.device).unsqueeze(0) % vocab_size
    changed = prompt.clone()
    changed[0, -1] = 0
    try:
        logits, others = (model(tokens).logits[0].float() for tokens in (prompt, changed))
    except Exception as error:
        raise UnsupportedModel(f"base model {label!r} cannot run: {_reason(error)}") from error
    if not torch.isfinite(logits).all():
        raise UnsupportedModel(
            f"base model {label!r} gives logits that are not finite in {model.dtype}: "
            "try bfloat16 or float32"
        )
    if (logits - others)[:-1].abs().max() > 1e-3 * logits.std():
        raise UnsupportedModel(
            f"base model {label!r} ({model.config.model_type}) is not causal: later tokens change "
            "earlier ones; give a decoder"
        )
