"""Hostile and damaged checkpoints: an error that names the file and what is wrong, never a crash or a hang."""

import json
from pathlib import Path

import pytest

from medlite.errors import CheckpointError
from quantize.source.checkpoint import RowReader, open_checkpoint
from tests.helpers.tiny_checkpoint import make_llama


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_a_truncated_shard_is_named(keep: int, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", n_shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="00002-of-00002"):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", n_shards=3)
    (folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00003-of-00003\.safetensors: missing shard"):
        open_checkpoint(folder)


def test_an_index_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", n_shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="leaves the folder"):
        open_checkpoint(folder)


def test_an_index_that_names_an_absent_tensor_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", n_shards=2)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.9.mlp.up_proj.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"layers\.9.* is missing"):
        open_checkpoint(folder)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_shard_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    checkpoint = open_checkpoint(folder)
    last = max(checkpoint.tensors.values(), key=lambda tensor: tensor.offset)
    with RowReader() as reader:
        reader.open(checkpoint.tensors)
        with (folder / "model.safetensors").open("r+b") as handle:
            handle.truncate(last.offset + 2)
        with pytest.raises(CheckpointError, match="ends early"):
            reader.read_into(last, 0, memoryview(bytearray(last.n_bytes)))
