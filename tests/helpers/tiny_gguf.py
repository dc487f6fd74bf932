"""A tiny random Llama as a GGUF file, for engine tests: 2 layers, hidden 256, byte-level BPE, Llama-3 style tokens.

Written with the gguf package, so these tests do not lean on our own quantizer. It says nothing sensible.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np

SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# fmt: off
WORDS = ("the", "quick", "patient", "takes", "metformin", "daily", "for", "diabetes", "and", "what", "class", "of",
         "drug", "is", "it", "answer")
# fmt: on
TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
    " + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
HIDDEN, N_LAYER, N_HEAD, N_HEAD_KV, N_FF, N_CONTEXT = 256, 2, 4, 2, 512, 512


def byte_letters() -> list[str]:
    """GPT-2's letters for the 256 bytes, in byte order (openai/gpt-2 src/encoder.py, bytes_to_unicode)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    extra = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(extra)) for b in range(256)]


def bpe(words: Sequence[str], n_merges: int) -> tuple[list[str], list[str]]:
    """Vocabulary and merges of a byte-level BPE trained on `words`, each counted once with a leading space."""
    letters = byte_letters()
    vocabulary, merges = list(letters), []
    split = [[letters[b] for b in f" {word}".encode()] for word in words]
    for _ in range(n_merges):
        pairs = Counter(pair for parts in split for pair in pairwise(parts))
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(f"{left} {right}")
        vocabulary.append(left + right)
        for parts in split:
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == (left, right):
                    parts[at : at + 2] = [left + right]
                at += 1
    return vocabulary, merges


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    template: str | None = TEMPLATE,
    poison: bool = False,
    architecture: str = "llama",
    n_layer: int = N_LAYER,
    n_context: int = N_CONTEXT,
) -> Path:
    """The file at `path`. poison puts NaN into the last norm, so that every logit is NaN."""
    random = np.random.default_rng(seed)
    vocabulary, merges = bpe(WORDS, 60)
    tokens = [*vocabulary, *SPECIALS]
    types = [gguf.TokenType.NORMAL] * len(vocabulary) + [gguf.TokenType.CONTROL] * len(SPECIALS)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(n_context)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_rope_dimension_count(HIDDEN // N_HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(vocabulary))
    writer.add_eos_token_id(len(vocabulary) + 4)
    writer.add_add_bos_token(True)
    if template is not None:
        writer.add_chat_template(template)
    for name, shape in tensor_shapes(len(tokens), n_layer).items():
        values = np.ones(shape) if name.endswith("norm.weight") else random.standard_normal(shape) / np.sqrt(shape[-1])
        if name == "output.weight":
            values[len(vocabulary) :] = 0  # logit 0, so greedy never picks a control token
        if poison and name == "output_norm.weight":
            values[:] = np.nan
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensor_shapes(n_vocab: int, n_layer: int) -> dict[str, tuple[int, ...]]:
    n_kv = HIDDEN // N_HEAD * N_HEAD_KV
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, HIDDEN)}
    for i in range(n_layer):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (HIDDEN,),
            f"blk.{i}.ffn_norm.weight": (HIDDEN,),
            f"blk.{i}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.attn_k.weight": (n_kv, HIDDEN),
            f"blk.{i}.attn_v.weight": (n_kv, HIDDEN),
            f"blk.{i}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.ffn_gate.weight": (N_FF, HIDDEN),
            f"blk.{i}.ffn_up.weight": (N_FF, HIDDEN),
            f"blk.{i}.ffn_down.weight": (HIDDEN, N_FF),
        }
    return shapes | {"output_norm.weight": (HIDDEN,), "output.weight": (n_vocab, HIDDEN)}
