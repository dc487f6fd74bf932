"""The table of families: each on a tiny checkpoint of its true structure, against llama_model_quantize."""

import ast
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from quantize.families import FAMILIES as TABLE
from quantize.families.llama import LLAMA
from quantize.gguf.outline import Outline
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.onnx.config import GENAI_NAME
from quantize.onnx.plan import plan_onnx
from quantize.onnx.recipes import ONNX_RECIPES
from quantize.source.checkpoint import open_checkpoint
from tests.helpers.family_cases import convert, importance_of
from tests.helpers.gguf_compare import assert_equal_tensors
from tests.helpers.llama_quantize import llama_quantize
from tests.helpers.places import ROOT
from tests.helpers.tiny_checkpoint import llama_config, make_llama
from tests.helpers.tiny_families import FAMILIES, make_family

QUICK_RECIPES = ("Q4_K_M", "Q3_K_L", "Q5_0")
# The other families are these with other names or other vocabularies: the same tensors come out.
DISTINCT = ("llama2", "llama3", "llama32", "mistral", "qwen2", "qwen3", "phi3", "phi3_long", "gemma3", "mllama")


CASES = [
    pytest.param(family, recipe, imatrix, marks=() if quick else pytest.mark.slow)
    for family, recipe, imatrix in itertools.product(DISTINCT, RECIPES, (False, True))
    if imatrix or not RECIPES[recipe].needs_imatrix
    for quick in [recipe in QUICK_RECIPES and not imatrix]
]


@pytest.mark.parametrize(("family", "recipe", "imatrix"), CASES)
def test_every_family_equals_llama_quantize(
    family: str, recipe: str, imatrix: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, source = folders[family], folders[family] / "source.gguf"
    if family == "llama3":  # stored as F16: quantized from F16, not from BF16
        source = tmp_path / "f16.gguf"
        convert(folder, "F16", source)
    importance = importance_of(source) if imatrix else None
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    convert(folder, recipe, ours, importance)
    llama_quantize(source, theirs, RECIPES[recipe].file_type, importance)
    assert_equal_tensors(ours, theirs)


def test_all_that_is_known_of_a_family_stands_in_its_file() -> None:
    """A family is one file and one row of the table, so no other module of quantize may name one."""
    names = {name for row in TABLE.values() for name in (row.hf_name, row.gguf_name)}
    for path in (ROOT / "quantize").rglob("*.py"):
        if path.parent.name == "families" or path.name == "tokenizer.py":  # which names kinds of vocabularies
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Constant) and node.value in names), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    ("hf_name", "heads", "expected"),
    [
        ("LlamaForCausalLM", (64, 8), True),
        ("LlamaForCausalLM", (64, 64), False),
        ("Qwen2ForCausalLM", (64, 64), True),
        ("Qwen3ForCausalLM", (64, 8), False),
        ("Phi3ForCausalLM", (64, 8), False),
    ],
)
def test_only_llama_and_qwen2_have_a_70b(hf_name: str, heads: tuple[int, int], expected: bool) -> None:
    config = {"num_hidden_layers": 80, "num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    assert TABLE[hf_name].is_70b(config) is expected


def test_a_row_of_the_table_is_all_that_a_new_family_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No module but the table knows it, and it has an outline and a plan in both formats."""
    assert LLAMA.arithmetic is not None
    row = replace(
        LLAMA, hf_name="NewForCausalLM", gguf_name="new", arithmetic=replace(LLAMA.arithmetic, genai_type="new_text")
    )
    monkeypatch.setitem(TABLE, row.hf_name, row)
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
    made = [make_family(name, tmp_path / name) for name in FAMILIES]
    names = {json.loads((folder / "config.json").read_text())["architectures"][0] for folder in made}
    assert names == set(TABLE)
