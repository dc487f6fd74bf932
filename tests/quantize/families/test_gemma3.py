"""Gemma 3: sparse configs, the 27B's attention scale, norms stored plus one."""

from pathlib import Path

import numpy as np
import pytest

from medlite.errors import CheckpointError
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from tests.helpers.family_cases import read_family
from tests.helpers.gguf_compare import tensors_of


def test_medgemma_sparse_config_is_filled_with_gemma_defaults() -> None:
    """gemma-3-4b's text_config names six keys; the rest is Transformers' default."""
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    }
    family, effective = read_family(config)
    shapes = family.shapes(effective)
    assert shapes["token_embd.weight"] == (262208, 2560)
    assert shapes["attn_q.weight"] == (2048, 2560)
    assert shapes["attn_k.weight"] == (1024, 2560)
    assert family.metadata(effective)["rope.freq_base_swa"].value == 10000.0


def test_gemma_27b_scales_attention_by_its_hidden_size() -> None:
    text = {
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 168,
        "sliding_window": 1024,
    }
    read_family({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text})
    with pytest.raises(CheckpointError, match="query_pre_attn_scalar 128"):
        read_family(
            {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text | {"query_pre_attn_scalar": 128}}
        )


def test_gemma_norms_are_stored_plus_one(folders: dict[str, Path]) -> None:
    """Gemma multiplies by 1 + weight, ggml by the weight; everything else keeps its bits."""
    folder = folders["gemma3"]
    plan = plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["BF16"])
    ours, raw = tensors_of(folder / "source.gguf"), (folder / "model.safetensors").read_bytes()
    for tensor in plan.tensors:
        assert tensor.source is not None
        stored = np.frombuffer(raw, "<u2", tensor.source.n_bytes // 2, tensor.source.offset)
        if "norm" in tensor.name:
            wanted = (stored.astype(np.uint32) << 16).view(np.float32) + np.float32(1)
            assert np.array_equal(np.frombuffer(ours[tensor.name][2], np.float32), wanted), tensor.name
        else:
            assert ours[tensor.name][2] == stored.tobytes(), tensor.name
