"""Runs Llama-shaped decoders with few kernel launches.

It takes weights and constants from the modules of transformers' model, and what a family has beyond
Llama from its `LayerShape`; models without one run by their own forward. Products that read the
same input are one (`server.adapters.batch.sites`); norms, rotary embedding, gate and attention are
kernels. Knows no sampling and no slots.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.adapters.batch.sites import Riding, Site, join
from server.bases.layer_shape import LayerNorms, LayerShape, layer_shape
from server.bases.model import BaseModel
from server.engine.kernels.mlp_gate import gate_mul
from server.engine.kernels.norm import add_rms_norm
from server.engine.kernels.rotary import HeadNorms, rotate_and_store
from server.engine.kv_cache import KVCache

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Layer, q [tokens, heads * head_dim], k and v [tokens, kv_heads * head_dim], rotated and stored;
gives [tokens, heads * head_dim]."""


class SiteAdapters(Protocol):
    """Applies the adapters of a step to products:
    `server.adapters.batch.fused_batch.FusedAdapters`."""

    def rides(self, site: Site) -> bool:
        """Whether the site's product should compute `A x` too."""
        ...

    def add(self, site: Site, x: Tensor, y: Tensor) -> None:
        """Add all deltas to y [tokens, at least site.width], in place."""
        ...

    def gate(self, site: Site, x: Tensor, y: Tensor, is_gelu: bool) -> Tensor:
        """`silu(gate) * up` of y with all deltas; gate and up are the halves of the site.

        With `is_gelu`, GELU in its tanh form stands in silu's place.
        """
        ...


class NoAdapters:
    """`SiteAdapters` of a step of the base alone."""

    def rides(self, site: Site) -> bool:
        return False

    def add(self, site: Site, x: Tensor, y: Tensor) -> None:
        pass

    def gate(self, site: Site, x: Tensor, y: Tensor, is_gelu: bool) -> Tensor:
        return gate_mul(y, site.width // 2, is_gelu)


@dataclass(frozen=True, eq=False)
class _Layer:
    """`angles` is the key of the layer's rotary tables."""

    qkv: Site
    out: Site
    gate_up: Site
    down: Site
    norms: LayerNorms
    head_norms: HeadNorms | None
    angles: str


class FusedDecoder:
    """The decoder of `base`, which has a `LayerShape`. Its weights become views of the sites'.

    Args:
        riding: joins every site's product; see `server.adapters.batch.sites.Riding`.
    """

    def __init__(self, base: BaseModel, riding: Riding | None = None) -> None:
        model: Any = base.model  # transformers' classes do not say which modules they have
        config = base.config
        shape = layer_shape(base)
        if shape is None:
            raise ValueError(f"{config.model_type} layers do not run in the fused decoder")
        decoder = model.get_decoder()
        prefix = next(path for path, module in model.named_modules() if module is decoder)
        self._embedding: nn.Embedding = model.get_input_embeddings()
        self._head: nn.Linear = model.get_output_embeddings()
        self._layers = [
            _layer(base, shape, f"{prefix}.layers.{index}", layer, riding)
            for index, layer in enumerate(decoder.layers)
        ]
        self._shape = shape
        self._norm = shape.gain(decoder.norm)
        self._eps: float = config.rms_norm_eps
        self.heads: int = config.num_attention_heads
        self.scaling: float = decoder.layers[0].self_attn.scaling
        self.windows = [_window(layer, config) for layer in decoder.layers]
        self._q = self.heads * base.head_dim
        self._kv = base.num_kv_heads * base.head_dim
        self._tables = {
            name: _rotary_table(decoder, base, [name] if shape.rotary_by_type else [])
            for name in {layer.angles for layer in self._layers}
        }

    @property
    def sites(self) -> list[Site]:
        """All sites, in the order of the layers."""
        return [
            site
            for layer in self._layers
            for site in (layer.qkv, layer.out, layer.gate_up, layer.down)
        ]

    def hidden(
        self,
        token_ids: Tensor,
        positions: Tensor,
        write_at: Tensor,
        kv: KVCache,
        attend: Attend,
        adapters: SiteAdapters,
    ) -> Tensor:
        """The input of the output head, [tokens, hidden].

        Args:
            token_ids, positions: int64 [tokens].
            write_at: int64 [tokens], `block * block_tokens + offset` of each token in the cache.
        """
        h = self._embedding(token_ids)  # the module: Gemma's scales what it gives
        angles = {
            name: (cos[positions], sin[positions]) for name, (cos, sin) in self._tables.items()
        }
        eps, is_gelu = self._eps, self._shape.gelu
        delta: Tensor | None = None
        after: Tensor | None = None
        for index, layer in enumerate(self._layers):
            norms = layer.norms
            x = add_rms_norm(h, delta, norms.before_attention, eps, after)
            qkv = _product(layer.qkv, x, adapters)
            q = qkv[:, : self._q]
            k = qkv[:, self._q : self._q + self._kv]
            v = qkv[:, self._q + self._kv : self._q + 2 * self._kv]
            memory = kv.layers[index]
            rotate_and_store(q, k, v, *angles[layer.angles], *memory, write_at, layer.head_norms)
            delta = _product(layer.out, attend(index, q, k, v), adapters)
            x = add_rms_norm(h, delta, norms.before_mlp, eps, norms.after_attention)
            gate_up = layer.gate_up.product(x, ride=adapters.rides(layer.gate_up))
            act = adapters.gate(layer.gate_up, x, gate_up, is_gelu)
            delta, after = _product(layer.down, act, adapters), norms.after_mlp
        return add_rms_norm(h, delta, self._norm, eps, after)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, vocab] of [rows, hidden]."""
        return functional.linear(hidden, self._head.weight, self._head.bias)


def _product(site: Site, x: Tensor, adapters: SiteAdapters) -> Tensor:
    y = site.product(x, ride=adapters.rides(site))
    adapters.add(site, x, y)
    return y[:, : site.width]


def _layer(
    base: BaseModel, shape: LayerShape, path: str, layer: Any, riding: Riding | None
) -> _Layer:
    def joined(*names: str) -> Site:
        return join([base.targets[f"{path}.{name}"] for name in names], riding)

    config, norms = base.config, shape.norms(layer)
    return _Layer(
        qkv=joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out=joined("self_attn.o_proj"),
        gate_up=joined("mlp.gate_proj", "mlp.up_proj"),
        down=joined("mlp.down_proj"),
        norms=norms,
        head_norms=None if norms.heads is None else HeadNorms(*norms.heads, config.rms_norm_eps),
        angles=config.layer_types[layer.self_attn.layer_idx] if shape.rotary_by_type else "",
    )


def _window(layer: Any, config: Any) -> int | None:
    """How many tokens back a layer sees; None: all."""
    if hasattr(layer.self_attn, "sliding_window"):
        own: int | None = layer.self_attn.sliding_window
        return own
    shared: int | None = getattr(config, "sliding_window", None)
    return shared if config.model_type == "mistral" else None


@torch.inference_mode()
def _rotary_table(decoder: Any, base: BaseModel, of: list[str]) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, each [max_context, head_dim], as the model computes them.

    Args:
        of: the type of layer that they are for, where the model has more than one table.
    """
    like = torch.empty(1, dtype=base.dtype, device=base.device)
    positions = torch.arange(base.max_context, device=base.device)[None]
    cos, sin = decoder.rotary_emb(like, positions, *of)
    return cos[0].contiguous(), sin[0].contiguous()
