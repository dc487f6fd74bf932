"""The logits of the tiny Llama in float64, with a cache of unrounded or of half-precision keys and values."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.helpers.tiny_gguf import HIDDEN, N_HEAD, N_HEAD_KV, N_LAYER

Array = NDArray[np.float64]
HEAD = HIDDEN // N_HEAD
EPSILON, ROPE_BASE = 1e-5, 10000.0


class ExactLlama:
    """A file of `write_tiny_gguf`, evaluated as llama.cpp does (src/models/llama.cpp), in numpy."""

    def __init__(self, path: Path) -> None:
        self._weights: dict[str, Array] = {
            tensor.name: np.asarray(tensor.data, dtype=np.float64) for tensor in gguf.GGUFReader(path).tensors
        }

    def logits(self, tokens: tuple[int, ...], *, cache: Any = np.float64) -> Array:
        """(n_tokens, n_vocab): row i predicts token i + 1. cache: the type that keys and values are stored in."""
        states = self._weights["token_embd.weight"][list(tokens)]
        for layer in range(N_LAYER):
            named = {n.split(".", 2)[2]: w for n, w in self._weights.items() if n.startswith(f"blk.{layer}.")}
            states = states + _attention(_normed(states, named["attn_norm.weight"]), named, cache)
            inner = _normed(states, named["ffn_norm.weight"])
            gate = inner @ named["ffn_gate.weight"].T
            states = states + (gate / (1 + np.exp(-gate)) * (inner @ named["ffn_up.weight"].T)) @ (
                named["ffn_down.weight"].T
            )
        return _normed(states, self._weights["output_norm.weight"]) @ self._weights["output.weight"].T


def _attention(states: Array, named: dict[str, Array], cache: Any) -> Array:
    """Causal attention of one sequence. states: (n_tokens, HIDDEN)."""
    n = len(states)
    queries = _rotated((states @ named["attn_q.weight"].T).reshape(n, N_HEAD, HEAD))
    keys = _rotated((states @ named["attn_k.weight"].T).reshape(n, N_HEAD_KV, HEAD))
    values = (states @ named["attn_v.weight"].T).reshape(n, N_HEAD_KV, HEAD)
    shared = N_HEAD // N_HEAD_KV
    keys, values = (np.repeat(x.astype(cache).astype(np.float64), shared, axis=1) for x in (keys, values))
    scores = np.einsum("qhd,khd->hqk", queries, keys) / np.sqrt(HEAD) + np.triu(np.full((n, n), -np.inf), 1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, values).reshape(n, HIDDEN) @ named["attn_output.weight"].T


def _normed(states: Array, weight: Array) -> Array:
    return states / np.sqrt((states**2).mean(axis=-1, keepdims=True) + EPSILON) * weight


def _rotated(heads: Array) -> Array:
    """RoPE over neighbouring pairs. heads: (n_tokens, n_heads, HEAD), positions from 0."""
    angles = np.arange(len(heads))[:, None, None] * ROPE_BASE ** (-np.arange(0, HEAD, 2) / HEAD)
    even, odd = heads[..., ::2], heads[..., 1::2]
    turned = np.stack([even * np.cos(angles) - odd * np.sin(angles), even * np.sin(angles) + odd * np.cos(angles)], -1)
    return turned.reshape(heads.shape)
