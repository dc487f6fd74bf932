"""medlite.json of an ONNX folder: read typed, and refused where a value could not be one of a model's."""

import json
from pathlib import Path
from typing import Any

import pytest

from medlite.errors import ArtifactError
from medlite.formats.onnx_folder import DATA_NAME, FACTS_NAME, MODEL_NAME, folder_bytes, is_onnx_folder, read_onnx_facts

# fmt: off
FACTS: dict[str, Any] = {
    "schema": "medlite-onnx-1", "name": "tiny", "architecture": "llama", "recipe": "INT4", "block": 32, "device": "cpu",
    "n_params": 1000, "n_data_bytes": 600, "bits_per_weight": 5, "n_vocab": 300, "n_context_trained": 512, "n_layer": 2,
    "n_head_kv": 2, "head_dim": 8, "kv_type": "float16", "long_rope_from": 0, "shared_cache": True,
    "special_tokens": {"bos_token": "<s>"}, "end_tokens": [2, 299], "chat_template": None,
}
# fmt: on


def folder_with(tmp_path: Path, facts: object) -> Path:
    (tmp_path / FACTS_NAME).write_text(json.dumps(facts))
    return tmp_path


def test_the_facts_are_read(tmp_path: Path) -> None:
    assert not is_onnx_folder(tmp_path)
    facts = read_onnx_facts(folder_with(tmp_path, FACTS | {"of a later medlite": 1}))
    assert is_onnx_folder(tmp_path)
    assert (facts.n_vocab, facts.bits_per_weight, facts.end_tokens, facts.chat_template) == (300, 5.0, [2, 299], None)
    assert facts.kv_bytes_per_token() == 2 * 2 * 2 * 8 * 2


# name -> (what differs, the message after the file's name)
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "another schema": ({"schema": "medlite-onnx-2"}, "schema 'medlite-onnx-2', expected 'medlite-onnx-1'"),
    "a size of zero": ({"n_layer": 0}, "n_layer: expected int >= 1"),
    "a size that overflows": ({"n_vocab": 1 << 48}, "n_vocab: expected int <= "),
    "a bool for a size": ({"head_dim": True}, "head_dim: expected int, found bool"),
    "a number for a bool": ({"shared_cache": 1}, "shared_cache: expected bool, found int"),
    "a cache of another type": ({"kv_type": "int8"}, "kv_type: Invalid enum value 'int8'"),
    "a negative place": ({"long_rope_from": -1}, "long_rope_from: expected int >= 0"),
    "special tokens that are numbers": ({"special_tokens": {"bos_token": 1}}, "special_tokens[...]: expected str"),
    "an end beyond the vocabulary": ({"end_tokens": [300]}, "end_tokens are not token ids below 300"),
    "an end below it": ({"end_tokens": [-1]}, "end_tokens[0]: expected int >= 0"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_facts_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as found:
        read_onnx_facts(folder_with(tmp_path, FACTS | change))
    assert str(found.value).startswith(f"{tmp_path / FACTS_NAME}: {message}")


@pytest.mark.parametrize("name", [name for name in FACTS if name != "schema"])
def test_every_fact_is_needed(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"missing key {name}"):
        read_onnx_facts(folder_with(tmp_path, {key: value for key, value in FACTS.items() if key != name}))


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    facts = read_onnx_facts(folder_with(tmp_path, FACTS))
    with pytest.raises(ArtifactError, match="No such file"):
        folder_bytes(tmp_path, facts)
    (tmp_path / MODEL_NAME).write_bytes(bytes(10))
    (tmp_path / DATA_NAME).write_bytes(bytes(600))
    assert folder_bytes(tmp_path, facts) == 610
    (tmp_path / DATA_NAME).write_bytes(bytes(599))
    with pytest.raises(ArtifactError, match="599 bytes, 600 were written"):
        folder_bytes(tmp_path, facts)
