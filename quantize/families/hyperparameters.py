"""What a config.json says: checked values, and the GGUF metadata, shapes and extra tensors they become.

One set of pure functions a family. The config they take is flat and complete: architectures.text_config has lifted
the nested text model and filled in what Transformers assumes when a key is missing.
Source of every key: llama.cpp conversion/base.py (TextModel.set_gguf_parameters) and the file of the family.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError
from medlite.formats.gguf import Kind, Value
from quantize.families.transforms import Config, head_dim

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ExtraTensor:
    """A tensor that the source states in its config only. Stored as F32."""

    name: str
    values: NDArray[np.float32]


def required(config: Config, key: str) -> Any:
    """config[key]; raises CheckpointError naming the key if it is missing."""
    if config.get(key) is None:
        raise CheckpointError(f"config.json: {key} is missing", hint="the folder is no complete checkpoint")
    return config[key]


def positive(config: Config, key: str) -> int:
    """config[key] as a positive integer."""
    value = required(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"config.json: {key} is {value!r}, a positive integer was needed")
    return value


def number(config: Config, key: str) -> float:
    """config[key] as a finite number."""
    value = required(config, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"config.json: {key} is {value!r}, a number was needed")
    return float(value)


def head_counts(config: Config) -> tuple[int, int]:
    """Query heads and key-value heads; the first is a multiple of the second."""
    n_head = positive(config, "num_attention_heads")
    n_head_kv = positive(config, "num_key_value_heads") if config.get("num_key_value_heads") is not None else n_head
    if n_head % n_head_kv:
        raise CheckpointError(f"config.json: {n_head} heads do not divide into {n_head_kv} key-value heads")
    return n_head, n_head_kv


def derived_head_dim(config: Config) -> int:
    """hidden_size / heads, where a config leaves head_dim out."""
    hidden, n_head = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    if hidden % n_head:
        raise CheckpointError(f"config.json: hidden_size {hidden} does not divide into {n_head} heads")
    return hidden // n_head


def rope_parameters(config: Config, layers: str = "full_attention") -> Mapping[str, Any]:
    """The rotary settings of one kind of layer, with rope_theta and rope_type.

    Reads both spellings: rope_scaling beside rope_theta (Transformers 4), rope_parameters (Transformers 5), the
    latter flat or by kind of layer.
    """
    stated = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(stated, dict):
        raise CheckpointError(f"config.json: rope_scaling is {stated!r}, an object was needed")
    by_kind = {"full_attention", "sliding_attention"} & set(stated)
    result = dict(stated.get(layers) or {}) if by_kind else dict(stated)
    result["rope_type"] = result.get("rope_type") or result.get("type") or "default"
    if result.get("rope_theta") is None:
        result["rope_theta"] = config.get("rope_theta")
    if result.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise CheckpointError(
            f"config.json: partial_rotary_factor {result['partial_rotary_factor']} is not known",
            hint="known: 1.0, every dimension of a head rotates",
        )
    return result


def rope_metadata(rope: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Value]:
    """The rope.* keys. Raises CheckpointError where the kind of scaling is not one of `known`."""
    kind = rope["rope_type"]
    if kind not in known:
        raise CheckpointError(
            f"config.json: rope_scaling of type {kind!r} is not known for this architecture",
            hint=f"known: {', '.join(known)}",
        )
    result = {"rope.freq_base": Value(Kind.FLOAT32, number(rope, "rope_theta"))}
    if kind == "linear":
        result["rope.scaling.type"] = Value(Kind.STRING, "linear")
        result["rope.scaling.factor"] = Value(Kind.FLOAT32, number(rope, "factor"))
    return result


def size_metadata(config: Config) -> dict[str, Value]:
    """The keys that every family has: layers, context, widths, heads, norm."""
    n_head, n_head_kv = head_counts(config)
    return {
        "block_count": Value(Kind.UINT32, positive(config, "num_hidden_layers")),
        "context_length": Value(Kind.UINT32, positive(config, "max_position_embeddings")),
        "embedding_length": Value(Kind.UINT32, positive(config, "hidden_size")),
        "feed_forward_length": Value(Kind.UINT32, positive(config, "intermediate_size")),
        "attention.head_count": Value(Kind.UINT32, n_head),
        "attention.head_count_kv": Value(Kind.UINT32, n_head_kv),
        "attention.layer_norm_rms_epsilon": Value(Kind.FLOAT32, number(config, "rms_norm_eps")),
    }


def head_metadata(config: Config) -> dict[str, Value]:
    """Key and value widths, where the config states head_dim."""
    if config.get("head_dim") is None:
        return {}
    width = Value(Kind.UINT32, positive(config, "head_dim"))
    return {"attention.key_length": width, "attention.value_length": width}


# --- Llama, Mistral, and the text model of Llama 3.2 Vision ----------------------------------------------------------


def llama_metadata(config: Config) -> dict[str, Value]:
    """Source: llama.cpp conversion/llama.py, LlamaModel."""
    return {
        **size_metadata(config),
        **rope_metadata(rope_parameters(config), ("default", "linear", "llama3")),
        **head_metadata(config),
        "vocab_size": Value(Kind.UINT32, positive(config, "vocab_size")),
        "rope.dimension_count": Value(Kind.UINT32, head_dim(config)),
    }


def mistral_metadata(config: Config) -> dict[str, Value]:
    """A Llama with a sliding window. llama.cpp neither writes nor reads it for this family: we state the fact."""
    result = llama_metadata(config)
    if config.get("sliding_window") is not None:
        result["attention.sliding_window"] = Value(Kind.UINT32, positive(config, "sliding_window"))
    return result


def llama_shapes(config: Config) -> Shapes:
    """The shapes that the config implies, by the tensor's name within its layer."""
    hidden, ffn, n_vocab = (positive(config, key) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    n_query, n_key = (n * head_dim(config) for n in head_counts(config))
    return {
        "token_embd.weight": (n_vocab, hidden),
        "output.weight": (n_vocab, hidden),
        "output_norm.weight": (hidden,),
        "attn_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
        "attn_q.weight": (n_query, hidden),
        "attn_k.weight": (n_key, hidden),
        "attn_v.weight": (n_key, hidden),
        "attn_output.weight": (hidden, n_query),
        "ffn_gate.weight": (ffn, hidden),
        "ffn_up.weight": (ffn, hidden),
        "ffn_down.weight": (hidden, ffn),
    }


def llama3_rope_factors(config: Config) -> tuple[ExtraTensor, ...]:
    """rope_freqs.weight (head_dim / 2,): what each rotary frequency is divided by under Llama 3.1's scaling.

    Source: llama.cpp conversion/llama.py, generate_extra_tensors; in float32 where torch has it. The powers are taken
    in float64 and rounded, which is what torch's vector power gives; numpy's float32 power is off by one bit.
    """
    rope = rope_parameters(config)
    if rope["rope_type"] != "llama3":
        return ()
    dim = head_dim(config)
    factor, low, high = (number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = number(rope, "original_max_position_embeddings")
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    powers = np.power(number(rope, "rope_theta"), exponents.astype(np.float64)).astype(np.float32)
    factors = np.empty(dim // 2, np.float32)
    for i, frequency in enumerate(np.float32(1.0) / powers):
        wavelength = np.float32(2 * math.pi) / frequency
        if wavelength < context / high:
            factors[i] = 1.0
        elif wavelength > context / low:
            factors[i] = factor
        else:
            smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
            factors[i] = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    return (ExtraTensor("rope_freqs.weight", factors),)


def no_extras(config: Config) -> tuple[ExtraTensor, ...]:
    return ()


# --- Qwen 2 and 3 ----------------------------------------------------------------------------------------------------


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
    return {**llama_shapes(config), "attn_q.bias": (n_query,), "attn_k.bias": (n_key,), "attn_v.bias": (n_key,)}


def qwen3_shapes(config: Config) -> Shapes:
    """A Llama's, with a norm of each head's Q and K."""
    width = head_dim(config)
    return {**llama_shapes(config), "attn_q_norm.weight": (width,), "attn_k_norm.weight": (width,)}


# --- Phi-3 -----------------------------------------------------------------------------------------------------------


def phi3_metadata(config: Config) -> dict[str, Value]:
    """Source: llama.cpp conversion/phi.py, Phi3MiniModel. A missing sliding window is written as 0."""
    rope = rope_parameters(config)
    result = {
        **size_metadata(config),
        **rope_metadata(rope, ("default", "longrope", "su")),
        "rope.dimension_count": Value(Kind.UINT32, derived_head_dim(config)),
        "rope.scaling.original_context_length": Value(Kind.UINT32, phi3_original_context(config)),
        "attention.sliding_window": Value(Kind.UINT32, config.get("sliding_window") or 0),
    }
    if rope["rope_type"] != "default":
        result["rope.scaling.attn_factor"] = Value(Kind.FLOAT32, phi3_attention_factor(config))
    return result


def phi3_original_context(config: Config) -> int:
    """Tokens that the model was trained on before its context was stretched."""
    rope = rope_parameters(config)
    return positive({**config, **{k: v for k, v in rope.items() if v is not None}}, "original_max_position_embeddings")


def phi3_attention_factor(config: Config) -> float:
    """What LongRoPE multiplies the rotated values by. Source: LongRoPE (2402.13753), equation in section 3.3."""
    original = phi3_original_context(config)
    scale = positive(config, "max_position_embeddings") / original
    factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    stated = rope_parameters(config).get("attention_factor")
    if stated is not None and not math.isclose(stated, factor, rel_tol=1e-6):
        raise CheckpointError(f"config.json: attention_factor {stated} is not the {factor} of the stretched context")
    return factor


def phi3_rope_factors(config: Config) -> tuple[ExtraTensor, ...]:
    """rope_factors_long.weight and rope_factors_short.weight (head_dim / 2,) of a stretched context."""
    rope = rope_parameters(config)
    if rope["rope_type"] == "default":
        return ()
    extras = []
    for name in ("long", "short"):
        values, n = required(rope, f"{name}_factor"), derived_head_dim(config) // 2
        if not (isinstance(values, list) and len(values) == n and all(isinstance(v, int | float) for v in values)):
            raise CheckpointError(f"config.json: {name}_factor is not a list of {n} numbers")
        extras.append(ExtraTensor(f"rope_factors_{name}.weight", np.array(values, np.float32)))
    return tuple(extras)


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


# --- Gemma 3 ---------------------------------------------------------------------------------------------------------

GEMMA3_PATTERN = 6  # Source: llama.cpp src/models/gemma3.cpp, load_swa_pattern(ml, 6)
GEMMA3_27B_LAYERS = 62


def gemma3_metadata(config: Config) -> dict[str, Value]:
    """Source: llama.cpp conversion/gemma.py, Gemma3Model."""
    _check_gemma3(config)
    local = rope_parameters(
        {**config, "rope_theta": config.get("rope_local_base_freq"), "rope_scaling": _by_kind(config)},
        "sliding_attention",
    )
    if local["rope_type"] != "default":
        raise CheckpointError(f"config.json: rope type {local['rope_type']!r} in sliding layers is not known")
    return {
        **size_metadata(config),
        **rope_metadata(rope_parameters(config), ("default", "linear")),
        **head_metadata(config),
        "rope.freq_base_swa": Value(Kind.FLOAT32, number(local, "rope_theta")),
        "attention.sliding_window": Value(Kind.UINT32, positive(config, "sliding_window")),
    }


def _by_kind(config: Config) -> Mapping[str, Any]:
    """The rotary settings by kind of layer; Transformers 4 states those of the full layers only."""
    stated = config.get("rope_parameters") or {}
    return stated if "sliding_attention" in stated else {"sliding_attention": {}}


def _check_gemma3(config: Config) -> None:
    """Raise CheckpointError where llama.cpp's fixed layer pattern or attention scale is not the model's."""
    n_layers = positive(config, "num_hidden_layers")
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    if pattern not in (None, GEMMA3_PATTERN):
        raise CheckpointError(f"config.json: sliding_window_pattern {pattern}, llama.cpp has {GEMMA3_PATTERN}")
    wanted = ["full_attention" if (i + 1) % GEMMA3_PATTERN == 0 else "sliding_attention" for i in range(n_layers)]
    if config.get("layer_types") not in (None, wanted):
        raise CheckpointError("config.json: layer_types are not five sliding layers and one full layer in turn")
    scalar = derived_head_dim(config) if n_layers == GEMMA3_27B_LAYERS else head_dim(config)
    if number(config, "query_pre_attn_scalar") != scalar:
        raise CheckpointError(
            f"config.json: query_pre_attn_scalar {config['query_pre_attn_scalar']}, "
            f"llama.cpp scales by {scalar} at {n_layers} layers"
        )


def gemma3_shapes(config: Config) -> Shapes:
    """A Qwen 3's, with a norm after attention and after the feed-forward too."""
    hidden = positive(config, "hidden_size")
    return {**qwen3_shapes(config), "post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
