"""A Llama in plain functions over a table of weights that carry their Hugging Face names.

Imports torch at the top: import this module only where training or a check against it runs.
Source: transformers, models/llama/modeling_llama.py (half-split rotary, RMSNorm, SwiGLU, grouped K and V).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the hidden and feed-forward rows are multiples of the K-quants' block of 256."""

    n_vocab: int = 4096
    n_embd: int = 256
    n_ffn: int = 256
    n_layer: int = 4
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_context: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


def weight_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by its name; the output head has weights of its own."""
    n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.n_vocab, shape.n_embd)}
    for layer in range(shape.n_layer):
        own = {
            "input_layernorm": (shape.n_embd,),
            "self_attn.q_proj": (n_q, shape.n_embd),
            "self_attn.k_proj": (n_kv, shape.n_embd),
            "self_attn.v_proj": (n_kv, shape.n_embd),
            "self_attn.o_proj": (shape.n_embd, n_q),
            "post_attention_layernorm": (shape.n_embd,),
            "mlp.gate_proj": (shape.n_ffn, shape.n_embd),
            "mlp.up_proj": (shape.n_ffn, shape.n_embd),
            "mlp.down_proj": (shape.n_embd, shape.n_ffn),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": size for name, size in own.items()}
    shapes["model.norm.weight"] = (shape.n_embd,)
    shapes["lm_head.weight"] = (shape.n_vocab, shape.n_embd)
    return shapes


def init_weights(shape: Shape, seed: int) -> Weights:
    """Return float32 weights: norms at one, matrices normal with std 0.02, those that write the residual less."""
    generator = torch.Generator().manual_seed(seed)
    residual_std = 0.02 / (2 * shape.n_layer) ** 0.5
    weights: Weights = {}
    for name, size in weight_shapes(shape).items():
        if len(size) == 1:
            weight = torch.ones(size)
        else:
            std = residual_std if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            weight = torch.randn(size, generator=generator) * std
        weights[name] = weight.requires_grad_()
    return weights


def rotary(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine for positions 0 to length - 1, each (length, head_dim), halves repeated."""
    inverse = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angle = torch.outer(torch.arange(length).float(), inverse)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-high, low), dim=-1) * sin.to(x.dtype)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def _attention(x: Tensor, weights: Weights, prefix: str, shape: Shape) -> Tensor:
    rows, length, _ = x.shape

    def heads(name: str, n_head: int) -> Tensor:
        flat = functional.linear(x, weights[f"{prefix}.{name}_proj.weight"])
        return flat.view(rows, length, n_head, shape.head_dim).transpose(1, 2)

    cos, sin = rotary(shape, length)
    group = shape.n_head // shape.n_head_kv
    query = _rotate(heads("q", shape.n_head), cos, sin)
    key = _rotate(heads("k", shape.n_head_kv), cos, sin).repeat_interleave(group, dim=1)
    value = heads("v", shape.n_head_kv).repeat_interleave(group, dim=1)
    # Written out, since the fused CPU kernel's backward pass is slower at these lengths (34 % of a step).
    scores = query @ key.transpose(-1, -2) * shape.head_dim**-0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1) @ value
    return functional.linear(mixed.transpose(1, 2).reshape(rows, length, -1), weights[f"{prefix}.o_proj.weight"])


def _feed_forward(x: Tensor, weights: Weights, prefix: str) -> Tensor:
    gate = functional.silu(functional.linear(x, weights[f"{prefix}.gate_proj.weight"]))
    up = functional.linear(x, weights[f"{prefix}.up_proj.weight"])
    return functional.linear(gate * up, weights[f"{prefix}.down_proj.weight"])


def hidden_states(weights: Weights, shape: Shape, tokens: Tensor) -> Tensor:
    """Return the normed last states, (rows, length, n_embd), for tokens of (rows, length).

    Rows are causal and independent, so padding on the right changes no state before it.
    """
    x = functional.embedding(tokens, weights["model.embed_tokens.weight"])
    for layer in range(shape.n_layer):
        prefix = f"model.layers.{layer}"
        normed = _norm(x, weights[f"{prefix}.input_layernorm.weight"], shape.norm_eps)
        x = x + _attention(normed, weights, f"{prefix}.self_attn", shape)
        normed = _norm(x, weights[f"{prefix}.post_attention_layernorm.weight"], shape.norm_eps)
        x = x + _feed_forward(normed, weights, f"{prefix}.mlp")
    return _norm(x, weights["model.norm.weight"], shape.norm_eps)


def logits_at(weights: Weights, states: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return logits, (n, n_vocab), of the n positions (rows[i], columns[i]); only those are computed."""
    return functional.linear(states[rows, columns], weights["lm_head.weight"]).float()
