"""Every row of the catalogue: what fit, pull and chat take from it must hold."""

from pathlib import Path

import pytest

from medlite.engines.llamacpp.memory import kv_bytes_per_token, read_shape
from medlite.errors import ArtifactError
from medlite.formats.gguf import FILE_TYPES
from medlite.models.catalog import PROMPT_FORMATS, CatalogModel, find_model, hf_config, near_names, read_catalog
from medlite.models.hub import REPOSITORY
from quantize.gguf.outline import Outline
from quantize.gguf.recipes import RECIPES

MODELS = list(read_catalog().values())
TASKS = {"medqa", "medqa_5", "medmcqa", "pubmedqa", "open_medical_llm_mean"}

# f16 bytes of KV cache a token, of every shape: an independent count, 2 * 2 * layers * KV heads * head size.
# fmt: off
KV_BYTES = {
    "llama3.2-1b-instruct": 32768, "llama3.2-3b-instruct": 114688, "llama3-8b": 131072, "llama3-med42-70b": 327680,
    "phi3-mini-4k": 393216, "me-llama-13b-chat": 819200, "meditron-7b": 524288, "biomistral-7b": 131072,
    "medgemma-4b-it": 139264, "medgemma-27b-text-it": 507904, "huatuogpt-o1-7b": 57344, "huatuogpt-o1-72b": 327680,
    "ii-medical-8b": 147456, "medpsy-4b": 147456, "medpsy-1.7b": 114688}
# fmt: on


def by_name(model: CatalogModel) -> str:
    return model.name


@pytest.mark.parametrize("model", MODELS, ids=by_name)
def test_the_shape_counts_the_parameters_that_are_stated(model: CatalogModel) -> None:
    assert Outline(hf_config(model)).n_params == model.n_params


@pytest.mark.parametrize("model", MODELS, ids=by_name)
def test_a_row_says_how_to_get_the_model_and_on_what_terms(model: CatalogModel) -> None:
    assert model.licence
    assert model.where.startswith("https://")
    assert model.access != "credentialed" or model.page
    assert not model.repository or REPOSITORY.fullmatch(model.repository)
    assert "memory" not in model.licence  # what was not read stands in the note


@pytest.mark.parametrize("model", MODELS, ids=by_name)
def test_a_row_has_a_prompt_format_with_a_place_for_the_question(model: CatalogModel) -> None:
    assert model.prompt_format.user.count("{text}") == 1
    assert model.prompt_format.system.count("{text}") == bool(model.prompt_format.system)


@pytest.mark.parametrize("model", MODELS, ids=by_name)
def test_published_accuracies_are_percentages_of_known_tasks_with_a_source(model: CatalogModel) -> None:
    assert set(model.accuracy) <= TASKS
    assert all(20 < value < 100 for value in model.accuracy.values())
    assert bool(model.accuracy) == bool(model.accuracy_source)


@pytest.mark.parametrize("model", MODELS, ids=by_name)
def test_every_recipe_can_be_sized(model: CatalogModel) -> None:
    outline = Outline(hf_config(model))
    sizes = {}
    for name in ("BF16", "Q8_0", "Q4_K_M", "Q2_K"):
        header = outline.header(RECIPES[name])
        assert read_shape(header).n_context_trained == model.context
        assert read_shape(header).n_vocab == model.vocabulary
        sizes[name] = 8 * sum(t.n_bytes for t in header.tensors) / model.n_params
    assert sizes["BF16"] == pytest.approx(16, abs=0.1)
    assert sizes["Q8_0"] == pytest.approx(8.5, abs=0.05)
    assert 4.5 < sizes["Q4_K_M"] < 5.5
    assert 2.6 < sizes["Q2_K"] < 4


@pytest.mark.parametrize("name", KV_BYTES)
def test_the_cache_of_one_token_is_counted_apart(name: str) -> None:
    model = read_catalog()[name]
    shape = read_shape(Outline(hf_config(model)).header(RECIPES["Q8_0"]))
    assert kv_bytes_per_token(shape, "f16") == KV_BYTES[name]


def test_recipes_of_the_quantizer_are_named_in_artifacts() -> None:
    assert set(RECIPES) <= set(FILE_TYPES)


def test_names_and_repositories_find_the_same_row() -> None:
    for model in MODELS:
        assert find_model(model.name.upper()) is model
        if model.repository:
            assert find_model(model.repository) is model
    assert find_model("gpt-5") is None
    assert near_names("llama3-med42-8") == ["llama3-med42-8b", *near_names("llama3-med42-8")[1:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('shape = "llama-9b"', "shape is 'llama-9b'"),
        ('access = "free"', "access is 'free'"),
        ('prompt = "alpaca"', "prompt is 'alpaca'"),
        ('evidence = "X"', "evidence is 'X'"),
        ('repository = ""', "a hub repository or a page"),
        ('page = "https://a.b/"', "a hub repository or a page"),
        ("accuracy = { medqa = 60.0 }", "accuracy and accuracy_source"),
        ('size = "8b"', "unknown field"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, change: str, message: str) -> None:
    row = {
        "repository": '"a/b"',
        "n_params": "1",
        "shape": '"s"',
        "vocabulary": "1",
        "context": "1",
        "licence": '"MIT"',
        "access": '"open"',
        "prompt": '"none"',
        "evidence": '"R"',
    }
    key, _, value = change.partition(" = ")
    row[key] = value
    path = tmp_path / "catalog.toml"
    path.write_text(
        '[shapes]\ns = { architecture = "LlamaForCausalLM", layers = 1, hidden = 1, heads = 1, '
        "kv_heads = 1, head_dim = 1, ffn = 1, tied = true }\n[models.m]\n"
        + "\n".join(f"{k} = {v}" for k, v in row.items())
    )
    with pytest.raises(ArtifactError, match=message):
        read_catalog(path)


def test_every_prompt_format_is_used() -> None:
    assert {model.prompt for model in MODELS} == set(PROMPT_FORMATS)
