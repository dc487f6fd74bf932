"""Our 16-bit GGUF against llama.cpp's own converter: every tensor's bytes, every metadata key.

Needs the llama.cpp source (MEDLITE_LLAMA_CPP names its folder; it lies in llama-cpp-python's source distribution as
vendor/llama.cpp) and torch, transformers and sentencepiece, which the converter imports.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.writer import write
from tests.helpers.gguf_compare import assert_equal_tensors, differing_keys
from tests.helpers.places import HELPERS
from tests.helpers.tiny_families import FAMILIES, make_family

LLAMA_CPP = os.environ.get("MEDLITE_LLAMA_CPP", "")
MISSING = [name for name in ("torch", "transformers", "sentencepiece") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(LLAMA_CPP, "convert_hf_to_gguf.py").is_file(), reason="MEDLITE_LLAMA_CPP names no llama.cpp source"
    ),
    pytest.mark.skipif(bool(MISSING), reason=f"the converter needs {', '.join(MISSING)}"),
]

# Mllama has no converter: tests/quantize/families/test_mllama.py compares it with a plain Llama, which has one.
CONVERTIBLE = [name for name in FAMILIES if not name.startswith("mllama")]
PRE_TOKENIZERS = {"llama3": "llama-bpe", "llama32": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}

# What differs on purpose, and why.
DIFFERENCES: dict[str, dict[str, str]] = {
    "": {"medlite.recipe": "ours alone: the recipe by name, which general.file_type tells by number"},
    "mistral": {"llama.attention.sliding_window": "ours alone: the converter drops it and llama.cpp does not read it"},
    "llama2_json_only": {
        "tokenizer.ggml.scores": "the converter gives every token -1000, so llama.cpp joins pieces left to right and "
        "cuts other tokens than the model was trained on; ours are the ranks of the merges",
        "tokenizer.ggml.token_type": "the converter knows bos, eos, unk and pad as control tokens; ours are all that "
        "tokenizer.json calls special, as with tokenizer.model",
        "tokenizer.ggml.tokens": "the converter leaves out the padding up to the model's embeddings, and llama.cpp "
        "refuses to load such a file",
    },
}


@pytest.mark.parametrize("family", CONVERTIBLE)
def test_our_16_bit_file_equals_the_converters(family: str, tmp_path: Path) -> None:
    folder = make_family(family, tmp_path / family)
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    recipe = "F16" if family == "llama3" else "BF16"
    write([plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES[recipe]).output(ours)])
    pre = [PRE_TOKENIZERS[family]] if family in PRE_TOKENIZERS else []
    done = subprocess.run(
        [sys.executable, str(HELPERS / "run_converter.py"), LLAMA_CPP, str(folder), str(theirs), "auto", *pre],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert_equal_tensors(ours, theirs)
    assert set(differing_keys(ours, theirs)) == set(DIFFERENCES[""]) | set(DIFFERENCES.get(family, {}))
