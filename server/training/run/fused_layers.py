"""The layers of a Llama-shaped base in training: the same function in fewer, larger kernels.

Transformers' own layers spend as long between their matrix products as on them. Here norm, rotation
and gate are one kernel each way, which keep less for the backward pass, and attention is torch's
causal one. The products stay the model's own modules, which adapters replace. Knows one shape of
layer: a base of another shape runs as it is. CUDA only.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import Tensor
from torch.nn import functional

from server.adapters.methods.row_shares import KERNELS_FROM
from server.bases.layer_shape import LayerShape, layer_shape
from server.bases.model import BaseModel
from server.training.run.layer_ops import LayerOps

# transformers calls the cache `cache` from 5.24 on.
_ELSEWHERE: Final = ("attention_mask", "past_key_values", "cache")


@contextmanager
def fused_layers(base: BaseModel, tokens: int) -> Iterator[None]:
    """Within, a pass of `tokens` through `base` without a cache or a mask uses the fused form.

    Nothing changes for a base on a CPU, for one of another shape, and for a pass so small that the
    host cannot launch it as fast as the device runs it: a kernel of ours takes longer to launch
    than the kernels of torch that it replaces.
    """
    fusable = base.device.type == "cuda" and layer_shape(base) is not None
    if not fusable or tokens * base.config.hidden_size < KERNELS_FROM:
        yield
        return
    from server.training.kernels.trainable_mlp_gate import gate_mul  # a CPU has no triton
    from server.training.kernels.trainable_norm import add_rms_norm
    from server.training.kernels.trainable_rotary import rotate

    with fused_with(base, LayerOps(add_rms_norm, rotate, gate_mul)):
        yield


@contextmanager
def fused_with(base: BaseModel, ops: LayerOps) -> Iterator[None]:
    """Within, every layer of `base`, which has a `LayerShape`, uses the fused form with `ops`."""
    shape = layer_shape(base)
    assert shape is not None
    decoder: Any = base.model.get_decoder()
    layers = list(decoder.layers)
    for layer in layers:
        layer.forward = _Layer(layer, ops, base, shape)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own shows again


class _Layer:
    """Replaces the `forward` of one decoder layer."""

    def __init__(self, layer: Any, ops: LayerOps, base: BaseModel, shape: LayerShape) -> None:
        self._layer = layer
        self._plain: Callable[..., Tensor] = type(layer).forward
        self._ops = ops
        self._norms = shape.norms(layer)
        self._is_gelu = shape.gelu
        self._eps: float = base.config.rms_norm_eps
        self._head_dim = base.head_dim
        self._window: int | None = getattr(layer.self_attn, "sliding_window", None)

    def __call__(self, hidden_states: Tensor, **rest: Any) -> Tensor:
        """hidden_states: [rows, columns, hidden], and so is the result."""
        cos, sin = rest["position_embeddings"]
        columns = hidden_states.shape[1]
        elsewhere = any(rest.get(name) is not None for name in _ELSEWHERE)
        windowed = self._window is not None and columns > self._window
        if elsewhere or windowed or len(cos) > 1:
            return self._plain(self._layer, hidden_states, **rest)
        mlp, ops, norms, eps = self._layer.mlp, self._ops, self._norms, self._eps
        h = hidden_states.reshape(-1, hidden_states.shape[-1])
        h, x = ops.add_rms_norm(h, None, norms.before_attention, eps)
        delta = self._normed(self._attended(x, cos[0], sin[0]), norms.after_attention)
        h, x = ops.add_rms_norm(h, delta, norms.before_mlp, eps)
        delta = mlp.down_proj(ops.gate_mul(mlp.gate_proj(x), mlp.up_proj(x), self._is_gelu))
        return (h + self._normed(delta, norms.after_mlp)).view(hidden_states.shape)

    def _normed(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """`x` in pieces as wide as `gain`, each of them normalised; None: `x` as it is."""
        if gain is None:
            return x
        pieces = x.reshape(-1, len(gain))
        return self._ops.add_rms_norm(pieces, None, gain, self._eps)[1].view(x.shape)

    def _attended(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [tokens, hidden] in rows of as many tokens as there are angles."""
        attention = self._layer.self_attn
        q_gain, k_gain = self._norms.heads or (None, None)
        q = self._normed(attention.q_proj(x), q_gain)
        k = self._normed(attention.k_proj(x), k_gain)
        q, k = self._ops.rotate(q, k, cos, sin)
        out = functional.scaled_dot_product_attention(
            self._heads(q, len(cos)),
            self._heads(k, len(cos)),
            self._heads(attention.v_proj(x), len(cos)),
            is_causal=True,
            scale=attention.scaling,
            enable_gqa=True,
        )
        projected: Tensor = attention.o_proj(out.transpose(1, 2).reshape(len(x), -1))
        return projected

    def _heads(self, x: Tensor, columns: int) -> Tensor:
        """[tokens, heads * head_dim] as [rows, heads, columns, head_dim]."""
        heads = x.shape[1] // self._head_dim
        return x.view(-1, columns, heads, self._head_dim).transpose(1, 2)
