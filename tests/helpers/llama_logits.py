"""Logits of a GGUF file by llama.cpp with a float32 cache and one plain decode: the least approximate way it has."""

from pathlib import Path

import numpy as np

from medlite.native import library

GGML_TYPE_F32 = 0  # ggml.h, enum ggml_type


def llama_logits(path: Path, ids: list[int]) -> np.ndarray:
    """(len(ids), n_vocab) float32 logits."""
    native = library()
    parameters = native.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = native.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, path
    settings = native.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
    settings.n_threads = settings.n_threads_batch = 2
    settings.type_k = settings.type_v = GGML_TYPE_F32
    settings.flash_attn_type = 0
    context = native.llama_init_from_model(model, settings)
    assert context
    batch = native.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    assert native.llama_decode(context, batch) == 0
    n_vocab = native.llama_vocab_n_tokens(native.llama_model_get_vocab(model))
    rows = [
        np.ctypeslib.as_array(native.llama_get_logits_ith(context, i), shape=(n_vocab,)).copy() for i in range(len(ids))
    ]
    native.llama_batch_free(batch)
    native.llama_free(context)
    native.llama_model_free(model)
    return np.stack(rows)
