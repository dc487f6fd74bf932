"""The plan: what a file will be, from headers alone, and every refusal before the first byte."""

import json
from pathlib import Path
from typing import Any

import pytest

from medlite.errors import CheckpointError, RecipeError, TokenizerError
from medlite.formats.artifact import open_artifact
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES, find_recipe
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.writer import write
from tests.helpers.places import GOLDEN
from tests.helpers.plans import tensor_infos
from tests.helpers.tiny_checkpoint import llama_config, llama_tensors, make_llama, write_safetensors

GOLDEN = GOLDEN / "plan-Q4_K_M.txt"


def plan_text(folder: Path, recipe: str) -> str:
    """A plan as a person reads it: name, type, shape, offset, bytes, reason."""
    plan = plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES[recipe])
    return (
        "\n".join(
            f"{info.name} {info.type.name} {'x'.join(map(str, info.shape))} @{info.offset} {info.n_bytes} {t.reason}"
            for info, t in zip(tensor_infos(plan), plan.tensors, strict=True)
        )
        + "\n"
    )


def test_the_plan_of_a_small_llama_is_as_it_was(tmp_path: Path) -> None:
    """Literal types, offsets and reasons; a change here changes users' files."""
    text = plan_text(make_llama(tmp_path / "m", num_hidden_layers=4), "Q4_K_M")
    assert text == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", [name for name, row in RECIPES.items() if not row.needs_imatrix])
def test_the_planned_size_is_the_written_size(recipe: str, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", num_hidden_layers=1)
    plan = plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES[recipe])
    out = tmp_path / "m.gguf"
    write([plan.output(out)])
    assert out.stat().st_size == plan.n_bytes
    assert open_artifact(out).bits_per_weight == pytest.approx(plan.bits_per_weight)
    assert open_artifact(out).recipe == recipe


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.needs_imatrix])
def test_a_recipe_that_needs_an_imatrix_refuses_without_one(name: str, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", num_hidden_layers=8)
    with pytest.raises(RecipeError, match=r"needs an importance matrix for blk\.\d"):
        plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES[name])


def test_an_unknown_recipe_names_its_neighbours() -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe("q4_k_x")
    assert "Q4_K_M" in str(caught.value.hint)


def test_several_files_hold_every_tensor_once_and_load(tmp_path: Path) -> None:
    from medlite.formats.gguf import read_header

    model = match_checkpoint(open_checkpoint(make_llama(tmp_path / "m", num_hidden_layers=4)))
    plan = plan_gguf(model, RECIPES["Q8_0"], max_shard_bytes=500_000)
    write([plan.output(tmp_path / "m.gguf")])
    paths = plan.paths(tmp_path / "m.gguf")
    assert len(paths) > 2
    assert paths[0].name == f"m-00001-of-{len(paths):05d}.gguf"
    headers = [read_header(path) for path in paths]
    names = [tensor.name for header in headers for tensor in header.tensors]
    assert names == [tensor.name for tensor in plan_gguf(model, RECIPES["Q8_0"]).tensors]
    assert [header.get("split.no") for header in headers] == list(range(len(paths)))
    assert {header.get("split.count") for header in headers} == {len(paths)}
    assert "general.architecture" not in headers[1].metadata
    with pytest.raises(RecipeError, match="takes"):
        plan_gguf(model, RECIPES["Q8_0"], max_shard_bytes=1000)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown architecture": ({"architectures": ["GPT9ForCausalLM"]}, "unknown architecture GPT9ForCausalLM"),
    "no architecture": ({"architectures": None}, "architectures is None"),
    "missing key": ({"rms_norm_eps": None}, "rms_norm_eps is missing"),
    "layers as text": ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "do not divide"),
    "unknown rope": ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "'spiral'"),
    "too few layers": ({"num_hidden_layers": 1}, "beyond the config's 1 layers"),
    "too many layers": ({"num_hidden_layers": 3}, r"no tensor becomes blk\.2\."),
    "other width": ({"hidden_size": 512}, "has shape"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_contradicts_the_weights_is_refused(name: str, tmp_path: Path) -> None:
    changes, message = CONFIGS[name]
    folder = make_llama(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(llama_config(**changes)))
    with pytest.raises(CheckpointError, match=message):
        plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q8_0"])


def test_a_tensor_that_no_rule_takes_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    tensors = llama_tensors(llama_config())
    tensors["model.layers.0.self_attn.q_proj.lora_A"] = tensors["model.norm.weight"]
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"no rule of LlamaForCausalLM takes .*lora_A"):
        plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q8_0"])


def test_a_missing_head_is_only_allowed_when_tied(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", tie_word_embeddings=True)
    assert plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q8_0"])
    (folder / "config.json").write_text(json.dumps(llama_config(tie_word_embeddings=False)))
    with pytest.raises(CheckpointError, match=r"no tensor becomes output\.weight"):
        plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q8_0"])


def test_a_tokenizer_larger_than_the_embeddings_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 600, "content": "<|extra|>", "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TokenizerError, match="id 600, the model has 512 embeddings"):
        plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q8_0"])


def test_an_unknown_pre_tokenizer_is_shown(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{Han}+"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TokenizerError, match=r"\\p\{Han\}"):
        plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q8_0"])


@pytest.mark.parametrize("override", [("ffn", "Q9_X"), ("ffn", "I32")])
def test_an_override_to_no_weight_type_is_refused(override: tuple[str, str], tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    with pytest.raises(RecipeError, match="unknown type"):
        plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q8_0"], overrides=(override,))


def test_an_override_without_effect_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    with pytest.raises(RecipeError, match="no effect"):
        plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["BF16"], overrides=(("ffn", "Q8_0"),))
