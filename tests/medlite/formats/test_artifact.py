"""What an artifact is, from its header: the same facts of both formats, and no crash on a header that lies."""

from pathlib import Path
from typing import Any

import pytest

from medlite.errors import ArtifactError
from medlite.formats.artifact import open_artifact
from medlite.formats.chat_template import special_tokens
from medlite.formats.gguf import FILE_TYPES, GGML_TYPES, Kind, TensorInfo, Value, pack_header, read_header

METADATA = {
    "general.architecture": Value(Kind.STRING, "llama"),
    "general.name": Value(Kind.STRING, "tiny"),
    "general.file_type": Value(Kind.UINT32, FILE_TYPES["Q8_0"]),
    "llama.context_length": Value(Kind.UINT32, 512),
    "tokenizer.ggml.tokens": Value(Kind.STRING, ["<s>", "a"], is_array=True),
    "tokenizer.ggml.bos_token_id": Value(Kind.UINT32, 0),
    "tokenizer.chat_template": Value(Kind.STRING, "{{ messages[0].content }}"),
}


def gguf_with(tmp_path: Path, changed: dict[str, Value], tensors: tuple[TensorInfo, ...] | None = None) -> Path:
    if tensors is None:
        tensors = (TensorInfo("w", GGML_TYPES["Q8_0"], (2, 32), 0), TensorInfo("i", GGML_TYPES["I32"], (8,), 96))
    path = tmp_path / "m.gguf"
    path.write_bytes(pack_header(METADATA | changed, tensors) + bytes(128))
    return path


def test_a_gguf_file_is_described_by_its_header(tmp_path: Path) -> None:
    found = open_artifact(gguf_with(tmp_path, {}))
    assert (found.format, found.name, found.recipe, found.n_params) == ("gguf", "tiny", "Q8_0", 64)
    assert found.bits_per_weight == 8 * 68 / 64  # two blocks of 34 bytes; integers are no weights
    assert (found.n_context_trained, found.n_vocab) == (512, 2)
    assert open_artifact(gguf_with(tmp_path, {"medlite.recipe": Value(Kind.STRING, "IQ2_M")})).recipe == "IQ2_M"
    assert open_artifact(gguf_with(tmp_path, {"general.file_type": Value(Kind.UINT32, 999)})).recipe == "unknown"


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a folder, a GGUF file was needed"):
        open_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="holds no weights"):
        open_artifact(gguf_with(tmp_path, {}, ()))
    with pytest.raises(ArtifactError, match=r"no general\.architecture"):
        open_artifact(gguf_with(tmp_path, {"general.architecture": Value(Kind.UINT32, 1)}))


@pytest.mark.parametrize("key", ["general.file_type", "llama.context_length", "llama.vocab_size"])
@pytest.mark.parametrize(
    "value", [Value(Kind.STRING, "x"), Value(Kind.FLOAT32, 0.5), Value(Kind.UINT32, [1], is_array=True)]
)
def test_a_count_of_another_type_is_an_error_that_names_it(key: str, value: Value, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"{key} is a .*, expected a whole number"):
        open_artifact(gguf_with(tmp_path, {key: value}))


def test_tokens_and_templates_of_another_type_are_none(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"tokenizer.ggml.tokens": Value(Kind.UINT32, 7), "tokenizer.chat_template": Value(Kind.UINT32, 7)},
        {"tokenizer.ggml.tokens": Value(Kind.UINT32, [7, 8], is_array=True)},
    ]
    for n_vocab, change in zip((0, 2), changes, strict=True):
        path = gguf_with(tmp_path, change)
        assert open_artifact(path).n_vocab == n_vocab
        assert special_tokens(read_header(path)) == {}
    assert open_artifact(gguf_with(tmp_path, changes[0])).chat_template is None
