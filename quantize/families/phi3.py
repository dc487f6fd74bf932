"""Phi-3 and 3.5 mini: Q, K and V in one tensor, gate and up in another, LongRoPE where the context is stretched."""

from typing import Any

from medlite.formats.gguf import Kind, Value
from quantize.families.config import Config, derived_head_dim, head_counts, positive
from quantize.families.family import (
    HEAD,
    MODEL,
    ROTARY_CACHE,
    Arithmetic,
    Family,
    Shapes,
    TensorRule,
    always,
    outer_rules,
    size_metadata,
    two_norms,
    window_note,
    windowed_layers,
)
from quantize.families.rope import (
    longrope_attention_factor,
    longrope_factors,
    longrope_table,
    original_context,
    rope_metadata,
    rope_parameters,
)

LAYER = MODEL + r"layers\.(\d+)\."
RULES = (
    *outer_rules(MODEL, HEAD),
    *two_norms(MODEL),
    TensorRule(LAYER + r"self_attn\.qkv_proj\.weight", "blk.{0}.attn_qkv.weight"),
    TensorRule(LAYER + r"self_attn\.o_proj\.weight", "blk.{0}.attn_output.weight"),
    TensorRule(LAYER + r"mlp\.gate_up_proj\.weight", "blk.{0}.ffn_up.weight"),
    TensorRule(LAYER + r"mlp\.down_proj\.weight", "blk.{0}.ffn_down.weight"),
)
DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


def phi3_metadata(config: Config) -> dict[str, Value]:
    """Source: llama.cpp conversion/phi.py, Phi3MiniModel. A missing sliding window is written as 0."""
    rope = rope_parameters(config)
    result = {
        **size_metadata(config),
        **rope_metadata(rope, ("default", "longrope", "su")),
        "rope.dimension_count": Value(Kind.UINT32, derived_head_dim(config)),
        "rope.scaling.original_context_length": Value(Kind.UINT32, original_context(config)),
        "attention.sliding_window": Value(Kind.UINT32, config.get("sliding_window") or 0),
    }
    if rope["rope_type"] != "default":
        result["rope.scaling.attn_factor"] = Value(Kind.FLOAT32, longrope_attention_factor(config))
    return result


def phi3_shapes(config: Config) -> Shapes:
    """Q, K and V in one tensor, gate and up in another."""
    hidden, ffn, n_vocab = (positive(config, key) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    n_query, n_key = (n * derived_head_dim(config) for n in head_counts(config))
    return {
        "token_embd.weight": (n_vocab, hidden),
        "output.weight": (n_vocab, hidden),
        "output_norm.weight": (hidden,),
        "attn_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
        "attn_qkv.weight": (n_query + 2 * n_key, hidden),
        "attn_output.weight": (hidden, n_query),
        "ffn_up.weight": (2 * ffn, hidden),
        "ffn_down.weight": (hidden, ffn),
    }


def phi3_notes(config: Config) -> tuple[str, ...]:
    """Also: llama.cpp picks LongRoPE's factors by the size of the context, Transformers by the prompt's length."""
    if not longrope_factors(config):
        return window_note(config)
    original = config.get("original_max_position_embeddings")
    return (
        *window_note(config),
        f"with a context of more than {original} tokens llama.cpp uses the long rope factors for short prompts too",
    )


PHI3 = Family(
    hf_name="Phi3ForCausalLM",
    gguf_name="phi3",
    rules=RULES,
    shapes=phi3_shapes,
    metadata=phi3_metadata,
    arithmetic=Arithmetic("phi3", windowed_layers, longrope_table),
    extras=longrope_factors,
    ignored=(ROTARY_CACHE,),
    defaults=DEFAULTS,
    has_sentencepiece=always,
    notes=phi3_notes,
)
