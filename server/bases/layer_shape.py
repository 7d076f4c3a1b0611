"""The layers that the fused decoder and lean training run, and how families of models differ there.

Knows no kernels. A family is here if its layers are Llama's but for the facts of `LayerShape`.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from torch import Tensor, nn

from server.bases.model import BaseModel


class LayerNorms(NamedTuple):
    """What the norms of a layer multiply by. The quotient is rounded to the gain's dtype first."""

    before_attention: Tensor
    after_attention: Tensor | None
    before_mlp: Tensor
    after_mlp: Tensor | None
    heads: tuple[Tensor, Tensor] | None
    """Of the heads of q and of k."""


@dataclass(frozen=True)
class LayerShape:
    """How the layers of a family differ from Llama's. Biases and windows are the modules' own.

    Attributes:
        head_norms: each head of q and k is normalised before it is rotated.
        norms_after: what attention and the MLP give is normalised before it is added.
        one_plus: norms multiply by 1 + weight in float32, and round once, after that.
        gelu: the gate is GELU in its tanh form, not SiLU.
        rotary_by_type: sliding and full layers rotate by different angles.
    """

    head_norms: bool = False
    norms_after: bool = False
    one_plus: bool = False
    gelu: bool = False
    rotary_by_type: bool = False

    def gain(self, norm: nn.Module) -> Tensor:
        """What one norm multiplies by; see `LayerNorms`."""
        weight = norm.get_parameter("weight").detach()
        return 1.0 + weight.float() if self.one_plus else weight

    def norms(self, layer: Any) -> LayerNorms:
        """The norms of one decoder layer."""
        second, attention = layer.post_attention_layernorm, layer.self_attn
        heads = None
        if self.head_norms:
            heads = self.gain(attention.q_norm), self.gain(attention.k_norm)
        first = self.gain(layer.input_layernorm)
        if not self.norms_after:
            return LayerNorms(first, None, self.gain(second), None, heads)
        before_mlp, last = layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm
        return LayerNorms(first, self.gain(second), self.gain(before_mlp), self.gain(last), heads)


_FAMILIES: Final = {
    "llama": LayerShape(),
    "mistral": LayerShape(),
    "qwen2": LayerShape(),
    "qwen3": LayerShape(head_norms=True),
    "gemma3_text": LayerShape(
        head_norms=True, norms_after=True, one_plus=True, gelu=True, rotary_by_type=True
    ),
}


def layer_shape(base: BaseModel) -> LayerShape | None:
    """The shape of the layers of `base`; None: they run by transformers' own forward alone.

    A layer is `q_proj`, `k_proj`, `v_proj`, `o_proj` under `self_attn`, and `gate_proj`, `up_proj`,
    `down_proj` under `mlp`, with or without biases; RMS norms; a gate; rotary embeddings over whole
    heads. The kernels take heads of 16, 32, 64, ... entries.
    """
    config = base.config
    shape = _FAMILIES.get(config.model_type)
    if shape is None or base.head_dim < 16 or base.head_dim & (base.head_dim - 1):
        return None
    gate = config.hidden_activation if shape.gelu else config.hidden_act
    # A cap changes the logits, and text that sees what comes later has no cache.
    changed = any(
        getattr(config, field, None)
        for field in ("final_logit_softcapping", "use_bidirectional_attention")
    )
    known = gate == ("gelu_pytorch_tanh" if shape.gelu else "silu")
    return shape if known and not changed else None
