"""Every model family on a tiny checkpoint of its true structure, against llama_model_quantize and by its own rules."""

import ast
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlite.errors import CheckpointError
from medlite.formats.gguf import read_header
from quantize.families import FAMILIES as TABLE
from quantize.families import find_family
from quantize.families.family import Family, text_config
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.gguf.write import gguf_output
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.writer import WriteSettings, write
from tests.helpers.gguf_compare import assert_equal_tensors, tensors_of
from tests.helpers.llama_quantize import llama_quantize
from tests.helpers.places import ROOT
from tests.helpers.tiny_checkpoint import llama_tensors, write_safetensors
from tests.helpers.tiny_families import FAMILIES, attention_factor, make_family, plain_llama_of_mllama

QUICK_RECIPES = ("Q4_K_M", "Q3_K_L", "Q5_0")
# The other families are these with other names or other vocabularies: the same tensors come out.
DISTINCT = ("llama2", "llama3", "llama32", "mistral", "qwen2", "qwen3", "phi3", "phi3_long", "gemma3", "mllama")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family's checkpoint, with our 16-bit GGUF of it beside the weights."""
    root = tmp_path_factory.mktemp("families")
    made = {name: make_family(name, root / name) for name in FAMILIES}
    for folder in made.values():
        convert(folder, "BF16", folder / "source.gguf")
    return made


def convert(folder: Path, recipe: str, target: Path, importance: dict[str, np.ndarray] | None = None) -> None:
    plan = plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES[recipe], importance=importance)
    write([gguf_output(plan, target)], WriteSettings(n_threads=2, measure=False, hash_source=False))


def importance_of(path: Path) -> dict[str, np.ndarray]:
    """Random column weights for every matrix in the file that is no embedding."""
    rng = np.random.default_rng(5)
    return {
        t.name: rng.exponential(size=t.shape[-1]).astype(np.float32)
        for t in read_header(path).tensors
        if len(t.shape) > 1 and t.name != "token_embd.weight"
    }


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


@pytest.mark.parametrize("family", FAMILIES)
def test_every_source_tensor_is_used_once_or_ignored_with_a_reason(family: str, folders: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(folders[family])
    plan = plan_gguf(match_checkpoint(checkpoint), RECIPES["Q8_0"])
    used = [tensor.source.name for tensor in plan.tensors if tensor.source is not None]
    ignored = [name for name in plan.model.ignored if "[" not in name]
    assert sorted(used + ignored) == sorted(checkpoint.tensors)
    assert all(plan.model.ignored.values())


@pytest.mark.parametrize("family", ["mllama", "mllama_new_names"])
def test_llama_vision_becomes_the_plain_llama_without_its_cross_attention_layers(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The same weights laid out as a Llama of three layers give the same file, tensor by tensor."""
    plain = plain_llama_of_mllama(tmp_path / "plain")
    convert(plain, "BF16", tmp_path / "plain.gguf")
    assert_equal_tensors(folders[family] / "source.gguf", tmp_path / "plain.gguf")
    assert tensors_of(tmp_path / "plain.gguf")["token_embd.weight"][1] == (512, 256)


def test_llama_vision_lists_what_it_leaves_out(folders: dict[str, Path]) -> None:
    ignored = plan_gguf(match_checkpoint(open_checkpoint(folders["mllama"])), RECIPES["Q8_0"]).model.ignored
    assert ignored["vision_model.class_embedding"] == "the vision tower: the result reads text only"
    assert ignored["language_model.model.layers.1.cross_attn_attn_gate"] == (
        "cross-attention to an image: skipped where there is none"
    )
    assert ignored["language_model.model.layers.4.mlp.down_proj.weight"] == (
        "layer 4, of a cross-attention layer: skipped where there is no image"
    )
    assert ignored["language_model.model.embed_tokens.weight[512:]"] == "rows past the vocabulary, of image tokens"


def test_all_that_is_known_of_a_family_stands_in_its_file() -> None:
    """A family is one file and one row of the table, so no other module of quantize may name one."""
    names = {name for row in TABLE.values() for name in (row.hf_name, row.gguf_name)}
    for path in (ROOT / "quantize").rglob("*.py"):
        if path.parent.name == "families" or path.name == "tokenizer.py":  # which names kinds of vocabularies
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Constant) and node.value in names), f"{path}:{node.lineno}"


def config_of(folder: Path, **changes: Any) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text()) | changes


# fmt: off
REFUSED = [
    ("llama3", {"attention_bias": True}, "attention_bias is True"),
    ("llama3", {"mlp_bias": True}, "mlp_bias is True"),
    ("llama3", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("llama3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("llama3", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling of type 'dynamic'"),
    ("llama3", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling of type 'yarn'"),
    ("llama3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
     "partial_rotary_factor 0.5"),
    ("llama3", {"sliding_window": 64}, "sliding_window is 64"),
    ("llama3", {"quantization_config": {"bits": 4}}, "quantization_config is"),
    ("llama3", {"num_local_experts": 8}, "num_local_experts is 8"),
    ("llama3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("mistral", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("phi3", {"partial_rotary_factor": 0.75}, "partial_rotary_factor is 0.75"),
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "long_factor"),
    ("phi3_long", {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [1.0] * 16,
                                    "attention_factor": 1.5}}, "attention_factor 1.5"),
    ("gemma3", {"sliding_window_pattern": 4}, "sliding_window_pattern 4"),
    ("gemma3", {"layer_types": ["full_attention"] * 8}, "layer_types"),
    ("gemma3", {"query_pre_attn_scalar": 168}, "query_pre_attn_scalar 168"),
    ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma3", {"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
    ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0},
                                    "full_attention": {}}}, "in sliding layers"),
    ("mllama", {"text_config": 3}, "text_config is a int"),
]
# fmt: on


@pytest.mark.parametrize(("family", "change", "message"), REFUSED)
def test_what_the_runtime_does_not_compute_is_refused(
    family: str, change: dict[str, Any], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = config_of(folders[family], **change)
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")):
        read_architecture(config)


def read_architecture(config: dict[str, Any]) -> tuple[Family, dict[str, Any]]:
    """What a plan does with a config before it looks at tensors."""
    architecture = find_family(config)
    effective = text_config(config, architecture)
    architecture.metadata(effective)
    architecture.extras(effective)
    return architecture, effective


@pytest.mark.parametrize("layers", [[1, 1], [5], [-1], ["1"], 3])
def test_cross_attention_layers_that_cannot_be_are_refused(layers: Any, folders: dict[str, Path]) -> None:
    config = config_of(folders["mllama"])
    config["text_config"]["cross_attention_layers"] = layers
    with pytest.raises(CheckpointError, match="cross_attention_layers"):
        read_architecture(config)


def test_transformers_5_spelling_of_rope_gives_the_same_metadata(folders: dict[str, Path]) -> None:
    """Gemma's by kind of layer, Llama's flat."""
    old = config_of(folders["gemma3"])
    new = dict(
        old,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    )
    for key in ("rope_theta", "rope_local_base_freq", "rope_scaling"):
        del new[key]
    gemma = TABLE["Gemma3ForCausalLM"]
    assert gemma.metadata(text_config(old, gemma)) == gemma.metadata(text_config(new, gemma))
    old = config_of(folders["llama32"])
    new = dict(old, rope_parameters={**old["rope_scaling"], "rope_theta": old["rope_theta"]})
    del new["rope_theta"], new["rope_scaling"]
    llama = TABLE["LlamaForCausalLM"]
    assert llama.metadata(text_config(old, llama)) == llama.metadata(text_config(new, llama))
    assert np.array_equal(
        llama.extras(text_config(old, llama))[0].values, llama.extras(text_config(new, llama))[0].values
    )


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
    architecture, effective = read_architecture(config)
    shapes = architecture.shapes(effective)
    assert shapes["token_embd.weight"] == (262208, 2560)
    assert shapes["attn_q.weight"] == (2048, 2560)
    assert shapes["attn_k.weight"] == (1024, 2560)
    assert architecture.metadata(effective)["rope.freq_base_swa"].value == 10000.0


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
    read_architecture({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text})
    with pytest.raises(CheckpointError, match="query_pre_attn_scalar 128"):
        read_architecture(
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


def test_long_rope_states_its_attention_factor(folders: dict[str, Path]) -> None:
    metadata = read_header(folders["phi3_long"] / "source.gguf").metadata
    assert metadata["phi3.rope.scaling.attn_factor"].value == pytest.approx(attention_factor(8192 / 512, 512))
    assert metadata["phi3.rope.scaling.original_context_length"].value == 512


def test_a_sliding_window_that_llama_cpp_drops_is_noted(folders: dict[str, Path]) -> None:
    notes = plan_gguf(match_checkpoint(open_checkpoint(folders["mistral"])), RECIPES["Q8_0"]).model.notes
    assert notes == ("beyond 128 tokens llama.cpp attends to all tokens, the source to the last 128",)
    assert plan_gguf(match_checkpoint(open_checkpoint(folders["llama3"])), RECIPES["Q8_0"]).model.notes == ()


def test_mistral_without_the_key_has_the_window_of_its_config_class(folders: dict[str, Path]) -> None:
    config = config_of(folders["mistral"])
    del config["sliding_window"]
    architecture, effective = read_architecture(config)
    assert architecture.metadata(effective)["attention.sliding_window"].value == 4096
    architecture, effective = read_architecture(config | {"sliding_window": None})
    assert "attention.sliding_window" not in architecture.metadata(effective)


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
