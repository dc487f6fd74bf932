"""The plan of an ONNX folder: exact, complete, and refused where the graph or the blocks cannot express the model."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medlite.errors import CheckpointError, MissingExtraError, RecipeError
from quantize.families import FAMILIES as TABLE
from quantize.match import match_checkpoint
from quantize.onnx.decoder import read_decoder
from quantize.onnx.plan import plan_onnx
from quantize.onnx.recipes import ONNX_RECIPES, find_onnx_recipe
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.plan import Plan
from quantize.stream.slabs import slabs_of
from tests.helpers.tiny_checkpoint import make_llama
from tests.helpers.tiny_families import FAMILIES, make_family

GOLDEN = """\
output.weight int8 b32: output
output_norm.weight float32: a vector or a norm stays float
token_embd.weight int8 b32: embedding
blk.0.attn_k.weight int8 b32: first layer
blk.0.attn_norm.weight float32: a vector or a norm stays float
blk.0.attn_output.weight int8 b32: first layer
blk.0.attn_q.weight int8 b32: first layer
blk.0.attn_v.weight int8 b32: attn_v
blk.0.ffn_down.weight int8 b32: ffn_down
blk.0.ffn_gate.weight int8 b32: first layer
blk.0.ffn_norm.weight float32: a vector or a norm stays float
blk.0.ffn_up.weight int8 b32: first layer
blk.1.attn_k.weight int4 b32 zp: default
blk.1.attn_norm.weight float32: a vector or a norm stays float
blk.1.attn_output.weight int4 b32 zp: default
blk.1.attn_q.weight int4 b32 zp: default
blk.1.attn_v.weight int8 b32: attn_v
blk.1.ffn_down.weight int8 b32: ffn_down
blk.1.ffn_gate.weight int4 b32 zp: default
blk.1.ffn_norm.weight float32: a vector or a norm stays float
blk.1.ffn_up.weight int4 b32 zp: default
rope.0.cos float32: computed from the config
rope.0.sin float32: computed from the config
"""


def plan_of(folder: Path, recipe: str = "q4m", *, block: int = 32, device: str = "cpu") -> Plan:
    return plan_onnx(match_checkpoint(open_checkpoint(folder)), ONNX_RECIPES[recipe], block=block, device=device)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_golden_plan(tmp_path: Path) -> None:
    plan = plan_of(make_llama(tmp_path / "m"))
    lines = [f"{tensor.name} {tensor.encoding.name}: {tensor.reason}\n" for tensor in plan.tensors]
    assert "".join(lines) == GOLDEN


@pytest.mark.parametrize("recipe", ONNX_RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_plan_for_every_recipe(family: str, recipe: str, tmp_path: Path) -> None:
    plan = plan_of(make_family(family, tmp_path / "m"), recipe)
    pieces = sorted((part for tensor in plan.tensors for part in tensor.parts), key=lambda part: part.offset)
    end = 0
    for piece in pieces:
        assert piece.offset >= end
        assert piece.offset - end < 4096
        assert piece.row_bytes * piece.n_rows == piece.n_bytes
        end = piece.offset + piece.n_bytes
    assert end == plan.files[1].n_bytes
    covered: dict[int, int] = {}
    for slab in slabs_of(plan.tensors):
        assert slab.first_row == covered.get(slab.tensor, 0)
        covered[slab.tensor] = slab.first_row + slab.n_rows
    assert covered == {i: tensor.n_rows for i, tensor in enumerate(plan.tensors)}


def test_every_family_that_converts_to_gguf_has_a_graph_and_a_type_of_onnxruntime_genai() -> None:
    types = {row.gguf_name: row.arithmetic.genai_type for row in TABLE.values() if row.arithmetic}
    assert types == {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3", "gemma3": "gemma3_text"}
    assert all(row.arithmetic for row in TABLE.values())


def test_a_family_without_a_graph_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "LlamaForCausalLM", replace(TABLE["LlamaForCausalLM"], arithmetic=None))
    with pytest.raises(CheckpointError, match="LlamaForCausalLM has no ONNX graph"):
        plan_of(make_llama(tmp_path / "m"))


@pytest.mark.parametrize(
    ("family", "windows", "n_tables"),
    [("llama32", {-1}, 1), ("phi3", {127}, 1), ("phi3_long", {-1}, 1), ("gemma3", {16, -1}, 2), ("mistral", {128}, 1)],
)
def test_windows_and_rotary_tables_are_the_config_s(
    family: str, windows: set[int], n_tables: int, tmp_path: Path
) -> None:
    decoder = read_decoder(match_checkpoint(open_checkpoint(make_family(family, tmp_path / "m"))))
    assert {layer.window for layer in decoder.layers} == windows
    assert len(decoder.tables) == n_tables
    assert bool(decoder.long_rope_from) == (family == "phi3_long")


def test_bits_per_weight_counts_scales_and_zero_points(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    q4, q8 = plan_of(folder, "q4"), plan_of(folder, "q8")
    matrices = sum(t.n_weights for t in q4.tensors if len(t.shape) == 2 and t.is_parameter)
    vectors = q4.n_params - matrices
    assert math.isclose(q4.bits_per_weight * q4.n_params, matrices * (4 + 20 / 32) + vectors * 32, rel_tol=1e-4)
    assert math.isclose(q8.bits_per_weight * q8.n_params, matrices * (8 + 16 / 32) + vectors * 32, rel_tol=1e-4)


Refusal = Callable[[Path], object]
REFUSALS: dict[str, tuple[type[Exception], str, Refusal]] = {
    "block that is not in the table": (RecipeError, "--block 48", lambda m: plan_of(m, block=48)),
    "unknown recipe": (RecipeError, "unknown ONNX recipe 'q5'", lambda m: find_onnx_recipe("q5")),
    "unknown device": (RecipeError, "--device npu", lambda m: plan_of(m, device="npu")),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_options_are_refused(case: str, tmp_path: Path) -> None:
    error, message, call = REFUSALS[case]
    with pytest.raises(error, match=message):
        call(make_llama(tmp_path / "m"))


def test_a_hidden_size_that_the_block_does_not_divide(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", hidden_size=288)
    plan_of(folder, block=32)
    with pytest.raises(RecipeError, match="row length 288 is not a multiple of 64") as refused:
        plan_of(folder, block=64)
    assert refused.value.hint == "--block 32"


def test_without_the_package_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError) as refused:
        _ = plan_of(make_llama(tmp_path / "m")).graph
    assert refused.value.hint == "pip install 'medlite[onnx]'"


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    change_config(folder, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"no tensor becomes blk\.2\."):
        plan_of(folder)


def test_gemma_is_not_squeezed_into_float16(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="range of float16"):
        plan_of(make_family("gemma3", tmp_path / "m"), device="cuda")
