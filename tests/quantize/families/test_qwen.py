"""Qwen 2: the mixture of its 72B."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantize.gguf.recipes import RECIPES
from tests.helpers.family_cases import config_of, convert
from tests.helpers.gguf_compare import assert_equal_tensors
from tests.helpers.llama_quantize import llama_quantize
from tests.helpers.tiny_checkpoint import llama_tensors, write_safetensors
from tests.helpers.tiny_families import make_family


@pytest.mark.slow
def test_an_80_layer_qwen2_gets_the_70b_mixture(tmp_path: Path) -> None:
    folder = make_family("qwen2", tmp_path / "qwen2")
    config = config_of(folder, num_hidden_layers=80, intermediate_size=256)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = llama_tensors(config | {"head_dim": 32})
    for i in range(80):
        for name, n in (("q", 256), ("k", 64), ("v", 64)):
            tensors[f"model.layers.{i}.self_attn.{name}_proj.bias"] = np.zeros(n, np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    convert(folder, "BF16", tmp_path / "bf16.gguf")
    convert(folder, "Q3_K_M", tmp_path / "ours.gguf")
    llama_quantize(tmp_path / "bf16.gguf", tmp_path / "theirs.gguf", RECIPES["Q3_K_M"].file_type)
    assert_equal_tensors(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
