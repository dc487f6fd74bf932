"""Qwen 2 and 2.5 (biases on Q, K and V), and Qwen 3 (a norm of each head's Q and K)."""

from typing import Any

from medlite.formats.gguf import Value
from quantize.families.config import Config, head_counts, head_dim, positive
from quantize.families.family import (
    HEAD,
    HEAD_NORMS,
    MODEL,
    QUERY_AND_KEY,
    Arithmetic,
    Family,
    Shapes,
    decoder_metadata,
    decoder_rules,
    decoder_shapes,
    full_layers,
    head_norm_shapes,
    layer_rules,
)
from quantize.families.rope import one_table
from quantize.families.transforms import KEEP

DECODER = decoder_rules(MODEL, HEAD, KEEP)
BIASES = {**QUERY_AND_KEY, "self_attn.v_proj": "attn_v"}
DEFAULTS: dict[str, Any] = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}


def qwen_metadata(config: Config) -> dict[str, Value]:
    """Source: llama.cpp conversion/qwen.py, Qwen2Model and Qwen3Model."""
    return decoder_metadata(config, ("default", "linear"))


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
    rules=(*DECODER, *layer_rules(MODEL, BIASES, kind="bias")),
    shapes=qwen2_shapes,
    metadata=qwen_metadata,
    arithmetic=Arithmetic("qwen2", full_layers, one_table),
    defaults=DEFAULTS,
    is_70b=is_qwen2_70b,
)
QWEN3 = Family(
    hf_name="Qwen3ForCausalLM",
    gguf_name="qwen3",
    rules=(*DECODER, *layer_rules(MODEL, HEAD_NORMS)),
    shapes=qwen3_shapes,
    metadata=qwen_metadata,
    arithmetic=Arithmetic("qwen3", full_layers, one_table),
    defaults={**DEFAULTS, "head_dim": 128},
)
