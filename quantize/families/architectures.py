"""Which source tensors become which GGUF tensors: one row a family. To add one, add a row to ARCHITECTURES.

Every source tensor matches exactly one rule or is listed as ignored with a reason; the plan refuses anything else.
What the runtime cannot compute as the config says is an error here, never an approximation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medlite.errors import CheckpointError
from medlite.formats.gguf import Value
from quantize.families.hyperparameters import (
    ExtraTensor,
    Shapes,
    derived_head_dim,
    gemma3_metadata,
    gemma3_shapes,
    head_counts,
    llama3_rope_factors,
    llama_metadata,
    llama_shapes,
    mistral_metadata,
    no_extras,
    phi3_metadata,
    phi3_rope_factors,
    phi3_shapes,
    positive,
    qwen2_shapes,
    qwen3_shapes,
    qwen_metadata,
    required,
)
from quantize.families.transforms import ADD_ONE, KEEP, PERMUTE_ROPE, Config, Transform


@dataclass(frozen=True)
class TensorRule:
    """Source tensors whose whole name matches `pattern` become `target`; {0} is the layer, the pattern's first group.

    extra_rows: how many of the last rows are left out.
    """

    pattern: str
    target: str
    transform: Transform = KEEP
    optional: bool = False
    extra_rows: int = 0


@dataclass(frozen=True)
class IgnoredRule:
    """Source tensors that are left out, and why."""

    pattern: str
    reason: str


def no_layers(config: Config) -> tuple[int, ...]:
    return ()


def no_notes(config: Config) -> tuple[str, ...]:
    return ()


def never(config: Config) -> bool:
    return False


@dataclass(frozen=True)
class Architecture:
    """hf_name: config.architectures[0]. gguf_name: general.architecture.

    shapes: by name within a layer, what the config says. metadata: without the "<gguf_name>." before each key.
    defaults: what Transformers assumes where the config has no such key; a function is called on the config.
    fixed: the only values that the runtime computes. dropped_layers: source layers left out, the rest renumbered.
    is_70b: llama.cpp counts the model as a 70B (recipes lift its V). notes: what a user must know of the result.
    """

    hf_name: str
    gguf_name: str
    rules: tuple[TensorRule, ...]
    shapes: Callable[[Config], Shapes]
    metadata: Callable[[Config], dict[str, Value]]
    extras: Callable[[Config], tuple[ExtraTensor, ...]] = no_extras
    ignored: tuple[IgnoredRule, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    dropped_layers: Callable[[Config], tuple[int, ...]] = no_layers
    is_70b: Callable[[Config], bool] = never
    notes: Callable[[Config], tuple[str, ...]] = no_notes


# --- rules -----------------------------------------------------------------------------------------------------------

MODEL = r"model\."
TEXT_MODEL = r"(?:language_model\.model|model\.language_model)\."  # Transformers 4 | 5
HEAD = r"(?:language_model\.)?lm_head\.weight"


def outer_rules(model: str, head: str) -> tuple[TensorRule, ...]:
    """Embedding, last norm, head."""
    return (
        TensorRule(model + r"embed_tokens\.weight", "token_embd.weight"),
        TensorRule(model + r"norm\.weight", "output_norm.weight"),
        TensorRule(head, "output.weight"),
    )


def feed_forward_rules(model: str) -> tuple[TensorRule, ...]:
    layer = model + r"layers\.(\d+)\.mlp\."
    return tuple(
        TensorRule(layer + rf"{name}_proj\.weight", f"blk.{{0}}.ffn_{name}.weight") for name in ("gate", "up", "down")
    )


def attention_rules(model: str, rotated: Transform) -> tuple[TensorRule, ...]:
    """Q, K, V and the output projection; `rotated` is what Q and K need."""
    layer = model + r"layers\.(\d+)\.self_attn\."
    return (
        TensorRule(layer + r"q_proj\.weight", "blk.{0}.attn_q.weight", rotated),
        TensorRule(layer + r"k_proj\.weight", "blk.{0}.attn_k.weight", rotated),
        TensorRule(layer + r"v_proj\.weight", "blk.{0}.attn_v.weight"),
        TensorRule(layer + r"o_proj\.weight", "blk.{0}.attn_output.weight"),
    )


def two_norms(model: str) -> tuple[TensorRule, ...]:
    """The norms of a pre-norm layer."""
    layer = model + r"layers\.(\d+)\."
    return (
        TensorRule(layer + r"input_layernorm\.weight", "blk.{0}.attn_norm.weight"),
        TensorRule(layer + r"post_attention_layernorm\.weight", "blk.{0}.ffn_norm.weight"),
    )


def llama_rules(model: str, head: str, rotated: Transform) -> tuple[TensorRule, ...]:
    return (*outer_rules(model, head), *two_norms(model), *attention_rules(model, rotated), *feed_forward_rules(model))


def head_norms(model: str, transform: Transform) -> tuple[TensorRule, ...]:
    layer = model + r"layers\.(\d+)\.self_attn\."
    return (
        TensorRule(layer + r"q_norm\.weight", "blk.{0}.attn_q_norm.weight", transform),
        TensorRule(layer + r"k_norm\.weight", "blk.{0}.attn_k_norm.weight", transform),
    )


def gemma3_rules(model: str) -> tuple[TensorRule, ...]:
    """Four norms a layer; Gemma stores each norm minus one."""
    layer = model + r"layers\.(\d+)\."
    norms = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    return (
        TensorRule(model + r"embed_tokens\.weight", "token_embd.weight"),
        TensorRule(model + r"norm\.weight", "output_norm.weight", ADD_ONE),
        TensorRule(HEAD, "output.weight"),
        *(
            TensorRule(layer + rf"{name}\.weight", f"blk.{{0}}.{target}.weight", ADD_ONE)
            for name, target in norms.items()
        ),
        *attention_rules(model, KEEP),
        *head_norms(model, ADD_ONE),
        *feed_forward_rules(model),
    )


_LAYER = MODEL + r"layers\.(\d+)\."
LLAMA_RULES = llama_rules(MODEL, r"lm_head\.weight", PERMUTE_ROPE)
QWEN2_RULES = (
    *llama_rules(MODEL, r"lm_head\.weight", KEEP),
    *(TensorRule(_LAYER + rf"self_attn\.{name}_proj\.bias", f"blk.{{0}}.attn_{name}.bias") for name in "qkv"),
)
QWEN3_RULES = (*llama_rules(MODEL, r"lm_head\.weight", KEEP), *head_norms(MODEL, KEEP))
PHI3_RULES = (
    *outer_rules(MODEL, r"lm_head\.weight"),
    *two_norms(MODEL),
    TensorRule(_LAYER + r"self_attn\.qkv_proj\.weight", "blk.{0}.attn_qkv.weight"),
    TensorRule(_LAYER + r"self_attn\.o_proj\.weight", "blk.{0}.attn_output.weight"),
    TensorRule(_LAYER + r"mlp\.gate_up_proj\.weight", "blk.{0}.ffn_up.weight"),
    TensorRule(_LAYER + r"mlp\.down_proj\.weight", "blk.{0}.ffn_down.weight"),
)
MLLAMA_EXTRA_ROWS = 8  # Source: transformers modeling_mllama.py, MllamaTextModel: vocab_size + 8
MLLAMA_RULES = (
    TensorRule(TEXT_MODEL + r"embed_tokens\.weight", "token_embd.weight", extra_rows=MLLAMA_EXTRA_ROWS),
    *llama_rules(TEXT_MODEL, HEAD, PERMUTE_ROPE)[1:],
)

ROTARY_CACHE = IgnoredRule(r".*\.rotary_emb\.inv_freq", "computed from the config")
VISION = IgnoredRule(
    r"(?:model\.)?(?:vision_tower|vision_model|multi_modal_projector)\..*",
    "the vision tower: the result reads text only",
)
CROSS_ATTENTION = IgnoredRule(
    TEXT_MODEL + r"layers\.\d+\.(?:cross_attn\..*|cross_attn_(?:attn|mlp)_gate)",
    "cross-attention to an image: skipped where there is none",
)
DROPPED_LAYER = "of a cross-attention layer: skipped where there is no image"


# --- what a config may say -------------------------------------------------------------------------------------------

# Features that change the arithmetic and that no row below computes; None and an absent key are always allowed.
# fmt: off
COMMON_FIXED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,), "mlp_bias": (False,), "partial_rotary_factor": (1.0,), "is_causal": (True,),
    "use_bidirectional_attention": (False,), "attn_logit_softcapping": (), "final_logit_softcapping": (),
    "num_local_experts": (), "num_experts": (), "quantization_config": (), "use_sliding_window": (False,),
    "hidden_act": ("silu",),
}
# fmt: on
# fmt: off
LLAMA_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "head_dim": derived_head_dim,
}
# fmt: on
# fmt: off
MISTRAL_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "head_dim": derived_head_dim,
    "num_key_value_heads": 8, "sliding_window": 4096,
}
# fmt: on
QWEN_DEFAULTS: dict[str, Any] = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
PHI3_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
# fmt: off
GEMMA3_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
}
# fmt: on
# fmt: off
MLLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
    "num_key_value_heads": 8, "head_dim": derived_head_dim, "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
}
# fmt: on
FULL_ATTENTION_ONLY: dict[str, tuple[Any, ...]] = {"sliding_window": ()}
GEMMA3_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "hidden_act": ("gelu_pytorch_tanh",),
}


def cross_attention_layers(config: Config) -> tuple[int, ...]:
    """The layers of Llama 3.2 Vision that attend to an image."""
    stated, n_layers = required(config, "cross_attention_layers"), positive(config, "num_hidden_layers")
    if not (
        isinstance(stated, list)
        and len(set(stated)) == len(stated)
        and all(isinstance(i, int) and 0 <= i < n_layers for i in stated)
    ):
        raise CheckpointError(f"config.json: cross_attention_layers {stated} are not layers of {n_layers}")
    return tuple(sorted(stated))


def is_llama_70b(config: Config) -> bool:
    """Source: llama.cpp src/models/llama.cpp, load_arch_hparams."""
    n_head, n_head_kv = head_counts(config)
    return positive(config, "num_hidden_layers") == 80 and n_head != n_head_kv


def is_qwen2_70b(config: Config) -> bool:
    """Source: llama.cpp src/models/qwen2.cpp, load_arch_hparams."""
    return positive(config, "num_hidden_layers") == 80


def window_note(config: Config) -> tuple[str, ...]:
    """llama.cpp lets every token of a Mistral or Phi-3 see all before it; up to the window that is the same."""
    window = config.get("sliding_window")
    if window is None or window >= positive(config, "max_position_embeddings"):
        return ()
    return (f"beyond {window} tokens llama.cpp attends to all tokens, the source to the last {window}",)


def phi3_notes(config: Config) -> tuple[str, ...]:
    """Also: llama.cpp picks LongRoPE's factors by the size of the context, Transformers by the prompt's length."""
    if not phi3_rope_factors(config):
        return window_note(config)
    original = config.get("original_max_position_embeddings")
    return (
        *window_note(config),
        f"with a context of more than {original} tokens llama.cpp uses the long rope factors for short prompts too",
    )


# fmt: off
ARCHITECTURES: dict[str, Architecture] = {row.hf_name: row for row in (
    Architecture("LlamaForCausalLM", "llama", LLAMA_RULES, llama_shapes, llama_metadata, llama3_rope_factors,
                 (ROTARY_CACHE,), LLAMA_DEFAULTS, FULL_ATTENTION_ONLY, is_70b=is_llama_70b),
    Architecture("MistralForCausalLM", "llama", LLAMA_RULES, llama_shapes, mistral_metadata, llama3_rope_factors,
                 (ROTARY_CACHE,), MISTRAL_DEFAULTS, is_70b=is_llama_70b, notes=window_note),
    Architecture("MllamaForConditionalGeneration", "llama", MLLAMA_RULES, llama_shapes, llama_metadata,
                 llama3_rope_factors, (ROTARY_CACHE, VISION, CROSS_ATTENTION), MLLAMA_DEFAULTS, FULL_ATTENTION_ONLY,
                 dropped_layers=cross_attention_layers, is_70b=is_llama_70b),
    Architecture("Qwen2ForCausalLM", "qwen2", QWEN2_RULES, qwen2_shapes, qwen_metadata, defaults=QWEN_DEFAULTS,
                 is_70b=is_qwen2_70b),
    Architecture("Qwen3ForCausalLM", "qwen3", QWEN3_RULES, qwen3_shapes, qwen_metadata,
                 defaults={**QWEN_DEFAULTS, "head_dim": 128}),
    Architecture("Phi3ForCausalLM", "phi3", PHI3_RULES, phi3_shapes, phi3_metadata, phi3_rope_factors,
                 (ROTARY_CACHE,), PHI3_DEFAULTS, notes=phi3_notes),
    Architecture("Gemma3ForCausalLM", "gemma3", gemma3_rules(MODEL), gemma3_shapes, gemma3_metadata,
                 defaults=GEMMA3_DEFAULTS, fixed=GEMMA3_FIXED),
    Architecture("Gemma3ForConditionalGeneration", "gemma3", gemma3_rules(TEXT_MODEL), gemma3_shapes,
                 gemma3_metadata, ignored=(VISION,), defaults=GEMMA3_DEFAULTS, fixed=GEMMA3_FIXED),
)}
# fmt: on


def find_architecture(config: Config) -> Architecture:
    """The row for config.architectures[0]. Raises CheckpointError listing the known ones."""
    names = config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise CheckpointError(f"config.json: architectures is {names!r}, a list with one name was needed")
    if names[0] not in ARCHITECTURES:
        raise CheckpointError(
            f"config.json: unknown architecture {names[0]}", hint=f"known: {', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[names[0]]


def text_config(config: Config, architecture: Architecture) -> dict[str, Any]:
    """The config of the model to come: text_config lifted, defaults filled in, layers counted without dropped_layers.

    Raises CheckpointError where the config asks for what the runtime does not compute.
    """
    nested = config.get("text_config") or {}
    if not isinstance(nested, dict):
        raise CheckpointError(f"config.json: text_config is a {type(nested).__name__}, an object was needed")
    result = {**config, **nested}
    for key, default in architecture.defaults.items():
        if key not in result or (callable(default) and result[key] is None):
            result[key] = default(result) if callable(default) else default
    for key, known in {**COMMON_FIXED, **architecture.fixed}.items():
        if result.get(key) is not None and result[key] not in known:
            what = f"known: {', '.join(map(str, known))}" if known else "known: none"
            raise CheckpointError(
                f"config.json: {key} is {result[key]!r}, {architecture.hf_name} with it is not known", hint=what
            )
    if architecture.gguf_name != "gemma3" and set(result.get("layer_types") or ()) - {"full_attention"}:
        raise CheckpointError(f"config.json: layer_types of {architecture.hf_name} other than full_attention")
    result["dropped_layers"] = architecture.dropped_layers(result)
    result["num_hidden_layers"] = positive(result, "num_hidden_layers") - len(result["dropped_layers"])
    return result
