"""What it costs to add a family: one file, one row of the table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from quantize.families import FAMILIES
from quantize.families.llama import LLAMA
from quantize.gguf.outline import Outline
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.onnx.config import GENAI_NAME
from quantize.onnx.plan import plan_onnx
from quantize.onnx.recipes import ONNX_RECIPES
from quantize.source.checkpoint import open_checkpoint
from tests.helpers import tiny_families
from tests.helpers.tiny_checkpoint import llama_config, make_llama


def test_a_row_of_the_table_is_all_that_a_new_family_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No module but the table knows it, and it has an outline and a plan in both formats."""
    assert LLAMA.arithmetic is not None
    row = replace(
        LLAMA, hf_name="NewForCausalLM", gguf_name="new", arithmetic=replace(LLAMA.arithmetic, genai_type="new_text")
    )
    monkeypatch.setitem(FAMILIES, row.hf_name, row)
    folder = make_llama(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(llama_config(architectures=[row.hf_name])))
    model = match_checkpoint(open_checkpoint(folder))
    gguf = plan_gguf(model, RECIPES["Q4_K_M"])
    assert gguf.metadata["general.architecture"].value == "new"
    assert gguf.metadata["new.block_count"].value == 2
    onnx = plan_onnx(model, ONNX_RECIPES["q4m"], block=32)
    genai = onnx.companions[GENAI_NAME]
    assert isinstance(genai, bytes)
    assert json.loads(genai)["model"]["type"] == "new_text"
    assert Outline(model.checkpoint.config).n_params == model.n_params


def test_every_row_of_the_table_has_a_tiny_checkpoint_that_the_tests_convert(tmp_path: Path) -> None:
    made = [tiny_families.make_family(name, tmp_path / name) for name in tiny_families.FAMILIES]
    names = {json.loads((folder / "config.json").read_text())["architectures"][0] for folder in made}
    assert names == set(FAMILIES)
