"""Our bytes against ggml's own: every recipe, with and without importance data."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from medlite.formats.gguf import GGML_TYPES, read_header
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.writer import WriteSettings, write
from tests.helpers.llama_quantize import llama_quantize
from tests.helpers.tiny_checkpoint import make_llama

# Layers enough that every eighth, sixteenth and "first four" of the mixtures is told apart.
SHAPES = {
    "grouped": {"num_hidden_layers": 16, "num_key_value_heads": 1, "intermediate_size": 256},
    "tied": {"num_hidden_layers": 3, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "odd rows": {"num_hidden_layers": 8, "intermediate_size": 96, "num_key_value_heads": 4},
}


def importance_of(path: Path) -> dict[str, np.ndarray]:
    """Random column weights, a few of them zero, for every matrix in the file."""
    rng = np.random.default_rng(7)
    result = {}
    for tensor in read_header(path).tensors:
        if len(tensor.shape) > 1 and tensor.name != "token_embd.weight":
            values = rng.exponential(size=tensor.shape[-1]).astype(np.float32)
            values[::37] = 0
            result[tensor.name] = values
    return result


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """For each shape: the checkpoint folder and our BF16 GGUF of it, which the oracle reads."""
    result = {}
    for name, changes in SHAPES.items():
        folder = make_llama(tmp_path_factory.mktemp("oracle") / name.replace(" ", "-"), **changes)
        bf16 = folder / "bf16.gguf"
        write([plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["BF16"]).output(bf16)])
        result[name] = (folder, bf16)
    return result


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    """Every tensor's order, type, shape, offset and bytes are equal."""
    a, b = read_header(ours), read_header(theirs)
    assert a.tensors == b.tensors
    raw_a, raw_b = ours.read_bytes()[a.data_start :], theirs.read_bytes()[b.data_start :]
    for tensor in a.tensors:
        span = slice(tensor.offset, tensor.offset + tensor.n_bytes)
        assert raw_a[span] == raw_b[span], tensor.name
    assert raw_a == raw_b


def is_quick(recipe: str, shape: str) -> bool:
    """The grid searches of IQ1 to IQ3 take seconds a file; one shape of them is enough for the default suite."""
    return shape == "tied" or not recipe.startswith(("IQ1", "IQ2", "IQ3"))


CASES = [
    pytest.param(recipe, shape, imatrix, marks=() if is_quick(recipe, shape) else pytest.mark.slow)
    for recipe, shape, imatrix in itertools.product(RECIPES, SHAPES, (False, True))
    if imatrix or not RECIPES[recipe].needs_imatrix
]


@pytest.mark.parametrize(("recipe", "shape", "imatrix"), CASES)
def test_every_recipe_equals_llama_quantize(
    recipe: str, shape: str, imatrix: bool, sources: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, bf16 = sources[shape]
    importance = importance_of(bf16) if imatrix else None
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    write(
        [plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES[recipe], importance=importance).output(ours)],
        WriteSettings(n_threads=2),
    )
    llama_quantize(bf16, theirs, RECIPES[recipe].file_type, importance)
    assert_same_tensors(ours, theirs)


def test_tensor_type_overrides_equal_llama_quantize(sources: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    folder, bf16 = sources["grouped"]
    overrides = ((r"blk\.[0-3]\.ffn_down", "Q8_0"), ("attn_v", "Q5_K"))
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    write([plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q4_K_M"], overrides=overrides).output(ours)])
    llama_quantize(
        bf16,
        theirs,
        RECIPES["Q4_K_M"].file_type,
        overrides=tuple((pattern, GGML_TYPES[name].id) for pattern, name in overrides),
    )
    assert_same_tensors(ours, theirs)


def test_70b_lifts_its_value_tensors(tmp_path: Path) -> None:
    """80 layers with grouped heads are llama.cpp's 70B, whose V gets more bits."""
    folder = make_llama(tmp_path / "70b", num_hidden_layers=80, num_key_value_heads=1, intermediate_size=256)
    model = match_checkpoint(open_checkpoint(folder))
    bf16, ours, theirs = tmp_path / "bf16.gguf", tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    write([plan_gguf(model, RECIPES["BF16"]).output(bf16), plan_gguf(model, RECIPES["Q3_K_M"]).output(ours)])
    llama_quantize(bf16, theirs, RECIPES["Q3_K_M"].file_type)
    assert_same_tensors(ours, theirs)
