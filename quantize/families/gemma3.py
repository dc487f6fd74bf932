"""Gemma 3 (MedGemma), text only or as the text model of the multimodal one.

Five layers with a sliding window and their own rotary table, then one that sees all; four norms a layer, each stored
minus one; embeddings scaled by the square root of their width.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medlite.errors import CheckpointError
from medlite.formats.gguf import Kind, Value
from quantize.families.config import Config, derived_head_dim, head_dim, number, positive
from quantize.families.family import (
    FEED_FORWARD,
    HEAD_NORMS,
    MODEL,
    NO_WINDOW,
    TEXT_HEAD,
    TEXT_MODEL,
    VISION,
    Arithmetic,
    Family,
    Layer,
    Shapes,
    TensorRule,
    always,
    attention_rules,
    decoder_metadata,
    decoder_shapes,
    head_norm_shapes,
    layer_rules,
    outer_rules,
    windowed_layers,
)
from quantize.families.rope import Rotary, RotaryTable, frequencies, one_table, rope_parameters
from quantize.families.transforms import ADD_ONE, KEEP

PATTERN = 6  # Source: llama.cpp src/models/gemma3.cpp, load_swa_pattern(ml, 6)
LAYERS_OF_27B = 62
# fmt: off
DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
}
# fmt: on
FIXED: dict[str, tuple[Any, ...]] = {"hidden_activation": ("gelu_pytorch_tanh",), "hidden_act": ("gelu_pytorch_tanh",)}
NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gemma3_rules(model: str) -> tuple[TensorRule, ...]:
    """Four norms a layer; Gemma stores each norm minus one."""
    return (
        *outer_rules(model, TEXT_HEAD, ADD_ONE),
        *layer_rules(model, NORMS, ADD_ONE),
        *attention_rules(model, KEEP),
        *layer_rules(model, HEAD_NORMS, ADD_ONE),
        *layer_rules(model, FEED_FORWARD),
    )


def gemma3_shapes(config: Config) -> Shapes:
    """A Qwen 3's, with a norm after attention and after the feed-forward too."""
    hidden = positive(config, "hidden_size")
    return {
        **decoder_shapes(config),
        **head_norm_shapes(config),
        "post_attention_norm.weight": (hidden,),
        "post_ffw_norm.weight": (hidden,),
    }


def gemma3_metadata(config: Config) -> dict[str, Value]:
    """Source: llama.cpp conversion/gemma.py, Gemma3Model."""
    check_gemma3(config)
    return {
        **decoder_metadata(config, ("default", "linear")),
        "rope.freq_base_swa": Value(Kind.FLOAT32, sliding_theta(config)),
        "attention.sliding_window": Value(Kind.UINT32, positive(config, "sliding_window")),
    }


def sliding_theta(config: Config) -> float:
    """rope_theta of the sliding layers, which rotate without scaling; Transformers 4 names it rope_local_base_freq."""
    stated = config.get("rope_parameters") or {}
    by_kind: Mapping[str, Any] = stated if "sliding_attention" in stated else {"sliding_attention": {}}
    local = rope_parameters(
        {**config, "rope_theta": config.get("rope_local_base_freq"), "rope_scaling": by_kind}, "sliding_attention"
    )
    if local["rope_type"] != "default":
        raise CheckpointError(f"config.json: rope type {local['rope_type']!r} in sliding layers is not known")
    return number(local, "rope_theta")


def sees_all(layer: int) -> bool:
    """True for the layers without a window."""
    return (layer + 1) % PATTERN == 0


def check_gemma3(config: Config) -> None:
    """Raise CheckpointError where llama.cpp's fixed layer pattern or attention scale is not the model's."""
    n_layers = positive(config, "num_hidden_layers")
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    if pattern not in (None, PATTERN):
        raise CheckpointError(f"config.json: sliding_window_pattern {pattern}, llama.cpp has {PATTERN}")
    wanted = ["full_attention" if sees_all(i) else "sliding_attention" for i in range(n_layers)]
    if config.get("layer_types") not in (None, wanted):
        raise CheckpointError("config.json: layer_types are not five sliding layers and one full layer in turn")
    scalar = derived_head_dim(config) if n_layers == LAYERS_OF_27B else head_dim(config)
    if number(config, "query_pre_attn_scalar") != scalar:
        raise CheckpointError(
            f"config.json: query_pre_attn_scalar {config['query_pre_attn_scalar']}, "
            f"llama.cpp scales by {scalar} at {n_layers} layers"
        )


def gemma3_layers(config: Config) -> tuple[Layer, ...]:
    """Sliding layers with the second rotary table, full ones with the first."""
    return tuple(
        Layer(NO_WINDOW, 0) if sees_all(i) else Layer(layer.window, 1)
        for i, layer in enumerate(windowed_layers(config))
    )


def gemma3_tables(config: Config) -> tuple[RotaryTable, ...]:
    """The rotary table of the full layers, then that of the sliding ones."""
    return (*one_table(config), RotaryTable(Rotary(frequencies(sliding_theta(config), head_dim(config)))))


def gemma3_embedding_scale(config: Config) -> float:
    return float(positive(config, "hidden_size") ** 0.5)


def gemma3_attention_scale(config: Config) -> float:
    return float(number(config, "query_pre_attn_scalar") ** -0.5)


GEMMA3 = Family(
    hf_name="Gemma3ForCausalLM",
    gguf_name="gemma3",
    rules=gemma3_rules(MODEL),
    shapes=gemma3_shapes,
    metadata=gemma3_metadata,
    arithmetic=Arithmetic(
        "gemma3_text",
        gemma3_layers,
        gemma3_tables,
        activation="gelu_tanh",
        embedding_scale=gemma3_embedding_scale,
        attention_scale=gemma3_attention_scale,
        fits_float16=False,
    ),
    defaults=DEFAULTS,
    fixed=FIXED,
    layer_kinds=("full_attention", "sliding_attention"),
    has_sentencepiece=always,
)
GEMMA3_MULTIMODAL = replace(
    GEMMA3, hf_name="Gemma3ForConditionalGeneration", rules=gemma3_rules(TEXT_MODEL), ignored=(VISION,)
)
