"""Mistral (BioMistral): a Llama whose layers may see a sliding window."""

from dataclasses import replace
from typing import Any

from medlite.formats.gguf import Kind, Value
from quantize.families.config import Config, derived_head_dim, positive
from quantize.families.family import Arithmetic, always, window_note, windowed_layers
from quantize.families.llama import LLAMA, llama_metadata
from quantize.families.rope import llama3_table

# fmt: off
DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "head_dim": derived_head_dim,
    "num_key_value_heads": 8, "sliding_window": 4096,
}
# fmt: on


def mistral_metadata(config: Config) -> dict[str, Value]:
    """A Llama with a sliding window. llama.cpp neither writes nor reads it for this family: we state the fact."""
    result = llama_metadata(config)
    if config.get("sliding_window") is not None:
        result["attention.sliding_window"] = Value(Kind.UINT32, positive(config, "sliding_window"))
    return result


MISTRAL = replace(
    LLAMA,
    hf_name="MistralForCausalLM",
    metadata=mistral_metadata,
    arithmetic=Arithmetic("llama", windowed_layers, llama3_table),
    defaults=DEFAULTS,
    fixed={},
    has_sentencepiece=always,
    notes=window_note,
)
