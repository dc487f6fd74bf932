"""Llama 1 to 3.2, text only, and what is laid out like it (Meditron, OpenBioLLM, Med42)."""

from typing import Any

from medlite.formats.gguf import Kind, Value
from quantize.families.config import Config, derived_head_dim, head_counts, head_dim, positive
from quantize.families.family import (
    HEAD,
    MODEL,
    ROTARY_CACHE,
    Arithmetic,
    Family,
    decoder_metadata,
    decoder_rules,
    decoder_shapes,
    full_layers,
)
from quantize.families.rope import llama3_factors, llama3_table
from quantize.families.transforms import PERMUTE_ROPE

SMALL_VOCABULARY = 64_000  # a Llama with fewer tokens is a Llama 2

# fmt: off
DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "head_dim": derived_head_dim,
}
# fmt: on


def llama_metadata(config: Config) -> dict[str, Value]:
    """Source: llama.cpp conversion/llama.py, LlamaModel."""
    return {
        **decoder_metadata(config, ("default", "linear", "llama3")),
        "vocab_size": Value(Kind.UINT32, positive(config, "vocab_size")),
        "rope.dimension_count": Value(Kind.UINT32, head_dim(config)),
    }


def is_llama_70b(config: Config) -> bool:
    """Source: llama.cpp src/models/llama.cpp, load_arch_hparams."""
    n_head, n_head_kv = head_counts(config)
    return positive(config, "num_hidden_layers") == 80 and n_head != n_head_kv


def is_llama_2(config: Config) -> bool:
    """True for a vocabulary of Llama 2's size, which is a SentencePiece one."""
    return positive(config, "vocab_size") < SMALL_VOCABULARY


LLAMA = Family(
    hf_name="LlamaForCausalLM",
    gguf_name="llama",
    rules=decoder_rules(MODEL, HEAD, PERMUTE_ROPE),
    shapes=decoder_shapes,
    metadata=llama_metadata,
    arithmetic=Arithmetic("llama", full_layers, llama3_table),
    extras=llama3_factors,
    ignored=(ROTARY_CACHE,),
    defaults=DEFAULTS,
    fixed={"sliding_window": ()},
    has_sentencepiece=is_llama_2,
    is_70b=is_llama_70b,
)
