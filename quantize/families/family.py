"""What makes a family: how its tensors are named and shaped, its metadata, and what its layers compute.

Every source tensor matches exactly one rule or is listed as ignored with a reason; quantize.match refuses anything
else. What the runtime cannot compute as the config says is an error here, never an approximation.
Source of every metadata key: llama.cpp conversion/base.py (TextModel.set_gguf_parameters) and the file of the family.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medlite.errors import CheckpointError
from medlite.formats.gguf import Kind, Value
from quantize.families.config import Config, ExtraTensor, head_counts, head_dim, number, positive
from quantize.families.rope import RotaryTable, rope_metadata, rope_parameters
from quantize.families.transforms import KEEP, Transform

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class TensorRule:
    """Source tensors whose whole name matches `pattern` become `target`; {0} is the layer, the pattern's first group.

    extra_rows: how many of the last rows are left out, extra_reason: why.
    """

    pattern: str
    target: str
    transform: Transform = KEEP
    extra_rows: int = 0
    extra_reason: str = ""


@dataclass(frozen=True)
class IgnoredRule:
    """Source tensors that are left out, and why."""

    pattern: str
    reason: str


NO_WINDOW = -1  # GroupQueryAttention's local_window_size for full attention


@dataclass(frozen=True)
class Layer:
    """window: tokens that a query sees, NO_WINDOW for all before it. table: which of the rotary tables it uses."""

    window: int
    table: int


def nothing(config: Config) -> tuple[()]:
    return ()


def never(config: Config) -> bool:
    return False


def always(config: Config) -> bool:
    return True


def unscaled(config: Config) -> float:
    return 1.0


def by_head_width(config: Config) -> float:
    """1 / sqrt(head width), what attention scores are multiplied by."""
    return float(head_dim(config) ** -0.5)


@dataclass(frozen=True)
class Arithmetic:
    """What a model computes beside its weights, for a graph that must state it (ONNX; llama.cpp knows it by name).

    genai_type: the type under which onnxruntime-genai runs the family (its src/models/model_type.h). layers, tables:
    see Layer. embedding_scale, attention_scale: what embeddings and attention scores are multiplied by.
    fits_float16: whether activations stay within float16, in which a CUDA graph computes.
    """

    genai_type: str
    layers: Callable[[Config], tuple[Layer, ...]]
    tables: Callable[[Config], tuple[RotaryTable, ...]]
    activation: str = "silu"  # or "gelu_tanh"
    embedding_scale: Callable[[Config], float] = unscaled
    attention_scale: Callable[[Config], float] = by_head_width
    fits_float16: bool = True


@dataclass(frozen=True)
class Family:
    """hf_name: config.architectures[0]. gguf_name: general.architecture.

    shapes: by name within a layer, what the config says. metadata: without the "<gguf_name>."
    before each key. arithmetic: None where the ONNX graph has no words for the family. extras:
    tensors that only the config states. defaults: what Transformers assumes where the config has
    no such key; a function is called on the config. fixed: the only values that the runtime
    computes. layer_kinds: those that layer_types may name. dropped_layers: source layers left out,
    the rest renumbered; dropped_reason: why. has_sentencepiece: the vocabulary's kind, where none
    was downloaded. is_70b: llama.cpp counts the model as a 70B (recipes lift its V). notes: what a
    user must know of the result.
    """

    hf_name: str
    gguf_name: str
    rules: tuple[TensorRule, ...]
    shapes: Callable[[Config], Shapes]
    metadata: Callable[[Config], dict[str, Value]]
    arithmetic: Arithmetic | None
    extras: Callable[[Config], tuple[ExtraTensor, ...]] = nothing
    ignored: tuple[IgnoredRule, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    layer_kinds: tuple[str, ...] = ("full_attention",)
    dropped_layers: Callable[[Config], tuple[int, ...]] = nothing
    dropped_reason: str = ""
    has_sentencepiece: Callable[[Config], bool] = never
    is_70b: Callable[[Config], bool] = never
    notes: Callable[[Config], tuple[str, ...]] = nothing


# --- what a config may say -------------------------------------------------------------------------------------------

# Features that change the arithmetic and that no family computes; None and an absent key are always allowed.
# fmt: off
COMMON_FIXED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,), "mlp_bias": (False,), "partial_rotary_factor": (1.0,), "is_causal": (True,),
    "use_bidirectional_attention": (False,), "attn_logit_softcapping": (), "final_logit_softcapping": (),
    "num_local_experts": (), "num_experts": (), "quantization_config": (), "use_sliding_window": (False,),
    "hidden_act": ("silu",),
}
# fmt: on


def text_config(config: Config, family: Family) -> dict[str, Any]:
    """The config of the model to come: text_config lifted, defaults filled in, layers counted without dropped_layers.

    Raises CheckpointError where the config asks for what the runtime does not compute.
    """
    nested = config.get("text_config") or {}
    if not isinstance(nested, dict):
        raise CheckpointError(f"config.json: text_config is a {type(nested).__name__}, an object was needed")
    result = {**config, **nested}
    for key, default in family.defaults.items():
        if key not in result or (callable(default) and result[key] is None):
            result[key] = default(result) if callable(default) else default
    for key, known in {**COMMON_FIXED, **family.fixed}.items():
        if result.get(key) is not None and result[key] not in known:
            what = f"known: {', '.join(map(str, known))}" if known else "known: none"
            raise CheckpointError(
                f"config.json: {key} is {result[key]!r}, {family.hf_name} with it is not known", hint=what
            )
    if set(result.get("layer_types") or ()) - set(family.layer_kinds):
        kinds = ", ".join(family.layer_kinds)
        raise CheckpointError(f"config.json: layer_types of {family.hf_name} other than {kinds}")
    result["dropped_layers"] = family.dropped_layers(result)
    result["num_hidden_layers"] = positive(result, "num_hidden_layers") - len(result["dropped_layers"])
    return result


# --- rules that families share ---------------------------------------------------------------------------------------

MODEL = r"model\."
TEXT_MODEL = r"(?:language_model\.model|model\.language_model)\."  # Transformers 4 | 5
HEAD = r"lm_head\.weight"
TEXT_HEAD = rf"(?:language_model\.)?{HEAD}"

# A layer's modules: their names in the source -> in GGUF.
TWO_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
QUERY_AND_KEY = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k"}
VALUE_AND_OUTPUT = {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
FEED_FORWARD = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def layer_rules(
    model: str, modules: Mapping[str, str], transform: Transform = KEEP, kind: str = "weight"
) -> tuple[TensorRule, ...]:
    """A rule for the weight (or the bias) of each of `modules`, in every layer."""
    return tuple(
        TensorRule(model + rf"layers\.(\d+)\.{re.escape(source)}\.{kind}", f"blk.{{0}}.{target}.{kind}", transform)
        for source, target in modules.items()
    )


def outer_rules(model: str, head: str, norm: Transform = KEEP) -> tuple[TensorRule, ...]:
    """Embedding, last norm, head; `norm` is what the norm needs."""
    return (
        TensorRule(model + r"embed_tokens\.weight", "token_embd.weight"),
        TensorRule(model + r"norm\.weight", "output_norm.weight", norm),
        TensorRule(head, "output.weight"),
    )


def attention_rules(model: str, rotated: Transform) -> tuple[TensorRule, ...]:
    """Q, K, V and the output projection; `rotated` is what Q and K need."""
    return (*layer_rules(model, QUERY_AND_KEY, rotated), *layer_rules(model, VALUE_AND_OUTPUT))


def decoder_rules(model: str, head: str, rotated: Transform) -> tuple[TensorRule, ...]:
    """A pre-norm decoder with separate Q, K, V and a gated feed-forward: Llama's layout, which most others share."""
    return (
        *outer_rules(model, head),
        *layer_rules(model, TWO_NORMS),
        *attention_rules(model, rotated),
        *layer_rules(model, FEED_FORWARD),
    )


ROTARY_CACHE = IgnoredRule(r".*\.rotary_emb\.inv_freq", "computed from the config")
VISION = IgnoredRule(
    r"(?:model\.)?(?:vision_tower|vision_model|multi_modal_projector)\..*",
    "the vision tower: the result reads text only",
)


# --- shapes, metadata, layers and notes that families share ----------------------------------------------------------


def decoder_shapes(config: Config) -> Shapes:
    """The shapes of `decoder_rules`' tensors, by the tensor's name within its layer."""
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


def head_norm_shapes(config: Config) -> Shapes:
    """The shapes of the norms of each head's Q and K."""
    width = head_dim(config)
    return {"attn_q_norm.weight": (width,), "attn_k_norm.weight": (width,)}


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


def decoder_metadata(config: Config, rope_types: tuple[str, ...]) -> dict[str, Value]:
    """The keys that most families have: also the rotation, and key and value widths where the config states head_dim.

    rope_types: those that the family computes.
    """
    result = {**size_metadata(config), **rope_metadata(rope_parameters(config), rope_types)}
    if config.get("head_dim") is not None:
        width = Value(Kind.UINT32, positive(config, "head_dim"))
        result |= {"attention.key_length": width, "attention.value_length": width}
    return result


def full_layers(config: Config) -> tuple[Layer, ...]:
    """Layers that all see every token before."""
    return (Layer(NO_WINDOW, 0),) * positive(config, "num_hidden_layers")


def windowed_layers(config: Config) -> tuple[Layer, ...]:
    """Layers that all see the config's sliding window, if it is shorter than the context."""
    window = int(config.get("sliding_window") or 0)
    if not 0 < window < positive(config, "max_position_embeddings"):
        window = NO_WINDOW
    return (Layer(window, 0),) * positive(config, "num_hidden_layers")


def window_note(config: Config) -> tuple[str, ...]:
    """llama.cpp lets every token of a Mistral or Phi-3 see all before it; up to the window that is the same."""
    window = config.get("sliding_window")
    if window is None or window >= positive(config, "max_position_embeddings"):
        return ()
    return (f"beyond {window} tokens llama.cpp attends to all tokens, the source to the last {window}",)
