"""Qwen 2 and 2.5 (biases on Q, K and V), and Qwen 3 (a norm of each head's Q and K)."""

from typing import Any

from medlite.formats.gguf import Value
from quantize.families.config import Config, head_counts, head_dim, positive
from quantize.families.family import (
    HEAD,
    MODEL,
    Arithmetic,
    Family,
    Shapes,
    TensorRule,
    decoder_rules,
    decoder_shapes,
    full_layers,
    head_metadata,
    head_norm_shapes,
    head_norms,
    size_metadata,
)
from quantize.families.rope import one_table, rope_metadata, rope_parameters
from quantize.families.transforms import KEEP

DECODER = decoder_rules(MODEL, HEAD, KEEP)
BIASES = tuple(
    TensorRule(MODEL + rf"layers\.(\d+)\.self_attn\.{name}_proj\.bias", f"blk.{{0}}.attn_{name}.bias") for name in "qkv"
)
DEFAULTS: dict[str, Any] = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}


def qwen_metadata(config: Config) -> dict[str, Value]:
    """Source: llama.cpp conversion/qwen.py, Qwen2Model and Qwen3Model."""
    return {
        **size_metadata(config),
        **rope_metadata(rope_parameters(config), ("default", "linear")),
        **head_metadata(config),
    }


def qwen2_shapes(config: Config) -> Shapes:
    """A Llama's, with biases on Q, K and V."""
    n_query, n_key = (n * head_dim(config) for n in head_counts(config))
    return {**decoder_shapes(config), "attn_q.bias": (n_query,), "attn_k.bias": (n_key,), "attn_v.bias": (n_key,)}


def qwen3_shapes(config: Config) -> Shapes:
    """A Llama's, with a norm of each head's Q and K."""
    return {**decoder_shapes(config), **head_norm_shapes(config)}


def is_qwen2_70b(config: Config) -> bool:
    """Source: llama.cpp src/models/qwen2.cpp, load_arch_hparams."""
    return positive(config, "num_hidden_layers") == 80


QWEN2 = Family(
    hf_name="Qwen2ForCausalLM",
    gguf_name="qwen2",
    rules=(*DECODER, *BIASES),
    shapes=qwen2_shapes,
    metadata=qwen_metadata,
    arithmetic=Arithmetic("qwen2", full_layers, one_table),
    defaults=DEFAULTS,
    is_70b=is_qwen2_70b,
)
QWEN3 = Family(
    hf_name="Qwen3ForCausalLM",
    gguf_name="qwen3",
    rules=(*DECODER, *head_norms(MODEL, KEEP)),
    shapes=qwen3_shapes,
    metadata=qwen_metadata,
    arithmetic=Arithmetic("qwen3", full_layers, one_table),
    defaults={**DEFAULTS, "head_dim": 128},
)
