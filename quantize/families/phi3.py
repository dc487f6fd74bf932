"""Phi-3 and 3.5 mini: Q, K and V in one tensor, gate and up in another, LongRoPE where the context is stretched."""

from typing import Any

from medlite.formats.gguf import Kind, Value
from quantize.families.config import Config, derived_head_dim, head_counts, positive
from quantize.families.family import (
    HEAD,
    MODEL,
    ROTARY_CACHE,
    TWO_NORMS,
    Arithmetic,
    Family,
    Shapes,
    always,
    decoder_shapes,
    layer_rules,
    outer_rules,
    size_metadata,
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

# fmt: off
MODULES = {
    "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
# fmt: on


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
    """A Llama's, with Q, K and V in one tensor, gate and up in another."""
    hidden, ffn = positive(config, "hidden_size"), positive(config, "intermediate_size")
    n_query, n_key = (n * derived_head_dim(config) for n in head_counts(config))
    return {
        **decoder_shapes(config),
        "attn_qkv.weight": (n_query + 2 * n_key, hidden),
        "attn_output.weight": (hidden, n_query),
        "ffn_up.weight": (2 * ffn, hidden),
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
    rules=(*outer_rules(MODEL, HEAD), *layer_rules(MODEL, TWO_NORMS), *layer_rules(MODEL, MODULES)),
    shapes=phi3_shapes,
    metadata=phi3_metadata,
    arithmetic=Arithmetic("phi3", windowed_layers, longrope_table),
    extras=longrope_factors,
    ignored=(ROTARY_CACHE,),
    defaults=DEFAULTS,
    has_sentencepiece=always,
    notes=phi3_notes,
)
