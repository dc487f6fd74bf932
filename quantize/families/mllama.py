"""The text model of Llama 3.2 Vision: a Llama between whose layers lie others that attend to an image."""

from dataclasses import replace
from typing import Any

from medlite.errors import CheckpointError
from quantize.families.config import Config, derived_head_dim, positive, required
from quantize.families.family import ROTARY_CACHE, TEXT_HEAD, TEXT_MODEL, VISION, IgnoredRule, decoder_rules
from quantize.families.llama import LLAMA
from quantize.families.transforms import PERMUTE_ROPE

EXTRA_ROWS = 8  # Source: transformers modeling_mllama.py, MllamaTextModel: vocab_size + 8
EMBEDDING, *OTHERS = decoder_rules(TEXT_MODEL, TEXT_HEAD, PERMUTE_ROPE)
CUT_EMBEDDING = replace(EMBEDDING, extra_rows=EXTRA_ROWS, extra_reason="rows past the vocabulary, of image tokens")
CROSS_ATTENTION = IgnoredRule(
    TEXT_MODEL + r"layers\.\d+\.(?:cross_attn\..*|cross_attn_(?:attn|mlp)_gate)",
    "cross-attention to an image: skipped where there is none",
)
# fmt: off
DEFAULTS: dict[str, Any] = {
    "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
    "num_key_value_heads": 8, "head_dim": derived_head_dim, "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
}
# fmt: on


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


MLLAMA = replace(
    LLAMA,
    hf_name="MllamaForConditionalGeneration",
    rules=(CUT_EMBEDDING, *OTHERS),
    ignored=(ROTARY_CACHE, VISION, CROSS_ATTENTION),
    defaults=DEFAULTS,
    dropped_layers=cross_attention_layers,
    dropped_reason="of a cross-attention layer: skipped where there is no image",
)
