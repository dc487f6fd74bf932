"""Which source tensors become which GGUF tensors: one row an architecture. To add one, add a row to ARCHITECTURES.

Every source tensor matches exactly one rule or is listed as ignored with a reason; the plan refuses anything else.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError
from medlite.gguf_format import Kind, Value
from quantize.transforms import KEEP, PERMUTE_ROPE, Config, Transform, head_dim


@dataclass(frozen=True)
class TensorRule:
    """Source tensors whose whole name matches `pattern` become `target`; {0} is the pattern's first group."""

    pattern: str
    target: str
    transform: Transform = KEEP
    optional: bool = False


@dataclass(frozen=True)
class IgnoredRule:
    """Source tensors that are left out, and why."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class ExtraTensor:
    """A tensor that the source states in its config only. Stored as F32."""

    name: str
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Architecture:
    """hf_name: config.architectures[0]. gguf_name: general.architecture. shapes: by name within a layer, what the
    config says."""

    hf_name: str
    gguf_name: str
    rules: tuple[TensorRule, ...]
    ignored: tuple[IgnoredRule, ...]
    shapes: Callable[[Config], dict[str, tuple[int, ...]]]
    metadata: Callable[[str, Config], dict[str, Value]]
    extras: Callable[[Config], tuple[ExtraTensor, ...]]


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


def head_counts(config: Config) -> tuple[int, int]:
    """Query heads and key-value heads; the first is a multiple of the second."""
    n_head = positive(config, "num_attention_heads")
    n_head_kv = positive(config, "num_key_value_heads") if config.get("num_key_value_heads") is not None else n_head
    if n_head % n_head_kv:
        raise CheckpointError(f"config.json: {n_head} heads do not divide into {n_head_kv} key-value heads")
    return n_head, n_head_kv


def rope_parameters(config: Config) -> Mapping[str, Any]:
    """The rotary settings with their theta, from either spelling (transformers 4 rope_scaling, 5 rope_parameters)."""
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(stated, dict):
        raise CheckpointError(f"config.json: rope_scaling is {stated!r}, an object was needed")
    result = dict(stated)
    result.setdefault("rope_theta", config.get("rope_theta"))
    if "rope_type" not in result and "type" in result:
        result["rope_type"] = result["type"]
    return result


def llama_metadata(prefix: str, config: Config) -> dict[str, Value]:
    """The hyperparameters of a Llama. Source: llama.cpp conversion/base.py and llama.py, set_gguf_parameters."""
    n_head, n_head_kv = head_counts(config)
    result = {
        "block_count": Value(Kind.UINT32, positive(config, "num_hidden_layers")),
        "context_length": Value(Kind.UINT32, positive(config, "max_position_embeddings")),
        "embedding_length": Value(Kind.UINT32, positive(config, "hidden_size")),
        "feed_forward_length": Value(Kind.UINT32, positive(config, "intermediate_size")),
        "attention.head_count": Value(Kind.UINT32, n_head),
        "attention.head_count_kv": Value(Kind.UINT32, n_head_kv),
    }
    rope = rope_parameters(config)
    kind = rope.get("rope_type")
    if kind == "linear":
        result["rope.scaling.type"] = Value(Kind.STRING, "linear")
        result["rope.scaling.factor"] = Value(Kind.FLOAT32, float(required(rope, "factor")))
    elif kind not in (None, "default", "llama3"):
        raise CheckpointError(f"config.json: rope_scaling of type {kind!r} is not known for {prefix}",
                              hint="known: default, linear, llama3")
    if rope.get("rope_theta") is not None:
        result["rope.freq_base"] = Value(Kind.FLOAT32, float(rope["rope_theta"]))
    result["attention.layer_norm_rms_epsilon"] = Value(Kind.FLOAT32, float(required(config, "rms_norm_eps")))
    if config.get("head_dim"):
        result["attention.key_length"] = Value(Kind.UINT32, positive(config, "head_dim"))
        result["attention.value_length"] = Value(Kind.UINT32, positive(config, "head_dim"))
    result["vocab_size"] = Value(Kind.UINT32, positive(config, "vocab_size"))
    result["rope.dimension_count"] = Value(Kind.UINT32, head_dim(config))
    return {f"{prefix}.{key}": value for key, value in result.items()}


def llama_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shapes that a Llama's config implies, by the tensor's name within its layer."""
    hidden, ffn, n_vocab = (positive(config, key) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    n_query, n_key = (n * head_dim(config) for n in head_counts(config))
    return {
        "token_embd.weight": (n_vocab, hidden), "output.weight": (n_vocab, hidden), "output_norm.weight": (hidden,),
        "attn_norm.weight": (hidden,), "ffn_norm.weight": (hidden,), "attn_q.weight": (n_query, hidden),
        "attn_k.weight": (n_key, hidden), "attn_v.weight": (n_key, hidden), "attn_output.weight": (hidden, n_query),
        "ffn_gate.weight": (ffn, hidden), "ffn_up.weight": (ffn, hidden), "ffn_down.weight": (hidden, ffn),
    }


def llama3_rope_factors(config: Config) -> tuple[ExtraTensor, ...]:
    """rope_freqs.weight (head_dim / 2,): what each rotary frequency is divided by under Llama 3.1's scaling.

    Source: llama.cpp conversion/llama.py, generate_extra_tensors; arithmetic in float32 where torch has it.
    """
    rope = rope_parameters(config)
    if rope.get("rope_type") != "llama3":
        return ()
    dim = head_dim(config)
    base = float(rope.get("rope_theta") or 10000.0)
    factor, low = float(rope.get("factor", 8.0)), float(rope.get("low_freq_factor", 1.0))
    high = float(rope.get("high_freq_factor", 4.0))
    context = float(rope.get("original_max_position_embeddings", 8192))
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = np.float32(1.0) / np.power(np.float32(base), exponents, dtype=np.float32)
    factors = np.empty(dim // 2, np.float32)
    for i, frequency in enumerate(frequencies):
        wavelength = np.float32(2 * math.pi) / frequency
        if wavelength < context / high:
            factors[i] = 1.0
        elif wavelength > context / low:
            factors[i] = factor
        else:
            smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
            factors[i] = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    return (ExtraTensor("rope_freqs.weight", factors),)


_L = r"model\.layers\.(\d+)\."
LLAMA_RULES = (
    TensorRule(r"model\.embed_tokens\.weight", "token_embd.weight"),
    TensorRule(r"model\.norm\.weight", "output_norm.weight"),
    TensorRule(r"lm_head\.weight", "output.weight"),
    TensorRule(_L + r"input_layernorm\.weight", "blk.{0}.attn_norm.weight"),
    TensorRule(_L + r"post_attention_layernorm\.weight", "blk.{0}.ffn_norm.weight"),
    TensorRule(_L + r"self_attn\.q_proj\.weight", "blk.{0}.attn_q.weight", PERMUTE_ROPE),
    TensorRule(_L + r"self_attn\.k_proj\.weight", "blk.{0}.attn_k.weight", PERMUTE_ROPE),
    TensorRule(_L + r"self_attn\.v_proj\.weight", "blk.{0}.attn_v.weight"),
    TensorRule(_L + r"self_attn\.o_proj\.weight", "blk.{0}.attn_output.weight"),
    TensorRule(_L + r"mlp\.gate_proj\.weight", "blk.{0}.ffn_gate.weight"),
    TensorRule(_L + r"mlp\.up_proj\.weight", "blk.{0}.ffn_up.weight"),
    TensorRule(_L + r"mlp\.down_proj\.weight", "blk.{0}.ffn_down.weight"),
)
ROTARY_CACHE = IgnoredRule(r".*\.rotary_emb\.inv_freq", "computed from the config")

ARCHITECTURES: dict[str, Architecture] = {row.hf_name: row for row in (
    Architecture("LlamaForCausalLM", "llama", LLAMA_RULES, (ROTARY_CACHE,), llama_shapes, llama_metadata,
                 llama3_rope_factors),
)}


def find_architecture(config: Config) -> Architecture:
    """The row for config.architectures[0]. Raises CheckpointError listing the known ones."""
    names = config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise CheckpointError(f"config.json: architectures is {names!r}, a list with one name was needed")
    if names[0] not in ARCHITECTURES:
        raise CheckpointError(f"config.json: unknown architecture {names[0]}",
                              hint=f"known: {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[names[0]]
