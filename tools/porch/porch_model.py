"""The training model: a Llama written for speed whose weights carry Hugging Face names.

Weights stay in float32 and are cast to bfloat16 where they are used, so that the residual
stream, the matrix products and the saved activations all take half the memory traffic.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tools.porch.porch_tokenizer import CONTEXT, VOCABULARY

IGNORED = -100
DOCUMENT_END_ID, TURN_END_ID = 0, 2


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the defaults are Porch's 17.3 million parameters."""

    hidden: int = 384
    layers: int = 9
    heads: int = 6
    key_heads: int = 2
    inner: int = 1024
    vocabulary: int = VOCABULARY
    context: int = CONTEXT
    rope_theta: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


class Norm(nn.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., width) to the same shape and type."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        normed: Tensor = wide * scale * self.weight
        return normed.to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and shared key heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.key_heads * shape.head
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, width, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Maps (rows, tokens, hidden) to the same shape."""
        rows, tokens, hidden = x.shape
        shape = self.shape
        joined = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        split = functional.linear(x, joined.to(x.dtype)).view(rows, tokens, -1, shape.head)
        query, key, value = split.split([shape.heads, shape.key_heads, shape.key_heads], dim=2)
        mixed = functional.scaled_dot_product_attention(
            _rotate(query, cosine, sine).transpose(1, 2),
            _rotate(key, cosine, sine).transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
            enable_gqa=True,
        )
        flat = mixed.transpose(1, 2).reshape(rows, tokens, hidden)
        return functional.linear(flat, self.o_proj.weight.to(x.dtype))


class FeedForward(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., hidden) to the same shape."""
        joined = torch.cat([self.gate_proj.weight, self.up_proj.weight]).to(x.dtype)
        gate, up = functional.linear(x, joined).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, self.down_proj.weight.to(x.dtype))


class Layer(nn.Module):
    """One transformer layer with pre-normalization."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = Norm(shape.hidden, shape.epsilon)
        self.post_attention_layernorm = Norm(shape.hidden, shape.epsilon)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Maps (rows, tokens, hidden) to the same shape."""
        attended: Tensor = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        mixed: Tensor = self.mlp(self.post_attention_layernorm(attended))
        return attended + mixed


class Porch(nn.Module):
    """Llama whose output layer is its embedding."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.epsilon)
        rates = shape.rope_theta ** (-torch.arange(0, shape.head, 2).float() / shape.head)
        angles = torch.outer(torch.arange(shape.context).float(), rates).repeat(1, 2)
        self.register_buffer("cosine", angles.cos()[:, None], persistent=False)
        self.register_buffer("sine", angles.sin()[:, None], persistent=False)
        self._initialize()

    def forward(self, ids: Tensor) -> Tensor:
        """Maps ids (rows, tokens) to bfloat16 logits (rows, tokens, vocabulary)."""
        tokens = ids.shape[1]
        cosine, sine = self.cosine[:tokens].bfloat16(), self.sine[:tokens].bfloat16()
        table = self.embed_tokens.weight.bfloat16()
        x = functional.embedding(ids, table)
        for layer in self.layers:
            x = layer(x, cosine, sine)
        return functional.linear(self.norm(x), table)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean cross entropy in nats over the targets that are not ignored."""
        logits = self(ids).flatten(0, 1).float()
        return functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED)

    def _initialize(self) -> None:
        residual = 1 / (2 * self.shape.layers) ** 0.5
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                ends_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 * (residual if ends_branch else 1.0))


def to_hugging_face(model: Porch) -> LlamaForCausalLM:
    """Returns the model as a bfloat16 `LlamaForCausalLM` on the CPU."""
    shape = model.shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=DOCUMENT_END_ID,
        eos_token_id=TURN_END_ID,
        pad_token_id=DOCUMENT_END_ID,
        dtype="bfloat16",
    )
    target = LlamaForCausalLM(config)
    state = {f"model.{name}": weight.cpu() for name, weight in model.state_dict().items()}
    target.load_state_dict({**state, "lm_head.weight": model.embed_tokens.weight.cpu()})
    target.generation_config = GenerationConfig(
        bos_token_id=DOCUMENT_END_ID,
        eos_token_id=[TURN_END_ID, DOCUMENT_END_ID],
        pad_token_id=DOCUMENT_END_ID,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
    )
    nn.Module.to(target, torch.bfloat16)
    target.eval()
    return target


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-high, low], dim=-1) * sine
