"""What a weight does in a model, by its GGUF name: recipes of every format choose by it."""

import re
from functools import cache

# The first match wins. Source: llama.cpp src/llama-quant.cpp, tensor_get_category.
CATEGORIES: tuple[tuple[str, str], ...] = (
    ("output", r"^output\.weight$"),
    ("embedding", r"^token_embd\.weight$"),
    ("attn_v", r"attn_qkv\.weight"),  # the fused tensor counts as V: it holds it
    ("attn_v", r"attn_v\.weight"),
    ("attn_k", r"attn_k\.weight"),
    ("attn_q", r"attn_q\.weight"),
    ("attn_output", r"attn_output\.weight"),
    ("ffn_up", r"ffn_up"),
    ("ffn_gate", r"ffn_gate"),
    ("ffn_down", r"ffn_down"),
)


@cache
def category_of(gguf_name: str) -> str:
    """The category of a tensor, "other" where no row of CATEGORIES matches."""
    return next((category for category, pattern in CATEGORIES if re.search(pattern, gguf_name)), "other")
