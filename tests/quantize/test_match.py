"""The match: every tensor named, shaped and found, and every small file read once, whatever is planned afterwards."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medlite.errors import CheckpointError
from quantize.families.names import expected_tensors
from quantize.families.transforms import KEEP, PERMUTE_ROPE
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint, match_config
from quantize.source.checkpoint import open_checkpoint
from tests.helpers.places import ROOT
from tests.helpers.tiny_checkpoint import llama_config, llama_tensors, make_llama, write_safetensors
from tests.helpers.tiny_families import FAMILIES, make_family

# Opens of files are heard from Python's own audit hook, which no library can bypass.
WALK = """
import sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.source.parity import check_metadata
folder = Path(sys.argv[1])
model = match_checkpoint(open_checkpoint(folder))
plans = [plan_gguf(model, RECIPES[name]) for name in ("Q4_K_M", "Q8_0", "BF16")]
check_metadata(plans[0].metadata, model.checkpoint.files)
print(*(Path(path).name for path in opened if path.startswith(str(folder))))
"""


def test_three_plans_and_the_check_of_the_tokenizer_open_each_file_once(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", n_shards=2)
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.1}')
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    done = subprocess.run(
        [sys.executable, "-c", WALK, str(folder)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    opened = Counter(done.stdout.split())
    assert opened.pop("config.json") == 2  # ours, and the package gguf's for general.*
    assert opened.pop("generation_config.json") == 2
    assert opened.pop("tokenizer.json") == 2  # ours, and the package tokenizers of the check
    assert {"tokenizer_config.json", "chat_template.jinja", "model.safetensors.index.json"} <= set(opened)
    assert set(opened.values()) == {1}, opened


@pytest.mark.parametrize("family", FAMILIES)
def test_a_complete_checkpoint_has_what_its_config_says(family: str, tmp_path: Path) -> None:
    """Names and shapes, from the weights' headers and from config.json alone."""
    checkpoint = open_checkpoint(make_family(family, tmp_path / family))
    model = match_checkpoint(checkpoint)
    found, config = match_config(checkpoint.config)
    assert (found, config) == (model.family, model.config)
    expected = {name: shape for name, (_, shape) in expected_tensors(found, config).items()}
    assert {tensor.name: tensor.shape for tensor in model.tensors if tensor.is_parameter} == expected
    assert {tensor.name for tensor in model.tensors if not tensor.is_parameter} == {
        extra.name for extra in found.extras(config)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_source_tensor_is_used_once_or_ignored_with_a_reason(family: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_family(family, tmp_path / family))
    model = match_checkpoint(checkpoint)
    used = [tensor.source.name for tensor in model.tensors if tensor.source is not None]
    ignored = [name for name in model.ignored if "[" not in name]
    assert sorted(used + ignored) == sorted(checkpoint.tensors)
    assert all(model.ignored.values())


def test_a_tensor_says_where_its_rows_lie_and_what_they_need(tmp_path: Path) -> None:
    model = match_checkpoint(open_checkpoint(make_family("llama32", tmp_path / "m")))
    tensors = {tensor.name: tensor for tensor in model.tensors}
    query, up, factors = (tensors[name] for name in ("blk.0.attn_q.weight", "blk.0.ffn_up.weight", "rope_freqs.weight"))
    assert query.source is not None
    assert query.source.name == "model.layers.0.self_attn.q_proj.weight"
    assert (query.transform, query.row_group) == (PERMUTE_ROPE, 64)
    assert (up.transform, up.row_group) == (KEEP, 1)
    assert factors.source is None
    assert factors.values is not None
    assert factors.values.dtype == np.float32
    assert model.n_params == sum(tensor.n_weights for tensor in model.tensors) - factors.n_weights
    assert model.n_gqa == 4


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    """Transformers 4 and 5 name the text model differently; a folder that holds both is not one model."""
    folder = make_family("mllama", tmp_path / "m")
    shard = folder / "model.safetensors"
    raw = shard.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n])
    name = "language_model.model.norm.weight"
    start = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
    size = header[name]["data_offsets"][1] - header[name]["data_offsets"][0]
    header["model.language_model.norm.weight"] = dict(header[name], data_offsets=[start, start + size])
    text = json.dumps(header).encode()
    shard.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + n :] + bytes(size))
    with pytest.raises(CheckpointError, match=r"both become output_norm\.weight"):
        match_checkpoint(open_checkpoint(folder))


def test_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    write_safetensors(folder / "model.safetensors", llama_tensors(llama_config()))
    shard = folder / "model.safetensors"
    raw = shard.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    shard.write_bytes(raw[:8] + raw[8 : 8 + n].replace(b'"BF16"', b' "I16"') + raw[8 + n :])
    with pytest.raises(CheckpointError, match="is I16, one of F32, F16, BF16"):
        match_checkpoint(open_checkpoint(folder))


def test_a_plan_of_another_pre_tokenizer_is_not_the_first_one_s(tmp_path: Path) -> None:
    """A match keeps its vocabulary, and another pre-tokenizer is another match."""
    checkpoint = open_checkpoint(make_llama(tmp_path / "m"))
    model, other = match_checkpoint(checkpoint), match_checkpoint(checkpoint, "smaug-bpe")
    pre = "tokenizer.ggml.pre"
    assert plan_gguf(model, RECIPES["Q8_0"]).metadata[pre].value == "llama-bpe"
    assert plan_gguf(other, RECIPES["Q8_0"]).metadata[pre].value == "smaug-bpe"
    assert model.vocabulary is model.vocabulary
