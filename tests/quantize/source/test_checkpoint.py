"""Hostile and damaged checkpoints: an error that names the file and what is wrong, never a crash or a hang."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medlite.errors import CheckpointError
from quantize.source.checkpoint import RowReader, open_checkpoint, read_safetensors_header
from tests.helpers.tiny_checkpoint import make_llama


def write_header(path: Path, header: object, data: bytes = b"") -> Path:
    raw = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(dtype: object = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "empty file": (b"", "too short"),
    "length beyond the file": (struct.pack("<Q", 1 << 62) + b"{}", "announced"),
    "length of everything": (struct.pack("<Q", 0xFFFF_FFFF_FFFF_FFFF), "announced"),
    "no JSON": (struct.pack("<Q", 4) + b"\xff\xfe{}", "no JSON"),
    "not an object": (struct.pack("<Q", 2) + b"[]", "an object was needed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_safetensors_is_refused(name: str, tmp_path: Path) -> None:
    raw, message = HOSTILE[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        read_safetensors_header(path)


HEADERS = {
    "dtype": ({"w": entry(dtype="Q4")}, "unknown dtype"),
    "dtype of another type": ({"w": entry(dtype=["F32"])}, "unknown dtype"),
    "negative size": ({"w": entry(shape=[-1, 4])}, "not a list of sizes"),
    "fractional size": ({"w": entry(shape=[1.5])}, "not a list of sizes"),
    "overflowing size": ({"w": entry(shape=[1 << 60, 1 << 60])}, "not a list of sizes"),
    "bytes that contradict the shape": ({"w": entry(offsets=[0, 12])}, "needs 16"),
    "offsets backwards": ({"w": entry(offsets=[16, 0])}, "needs 16"),
    "offset beyond the file": ({"w": entry(offsets=[1 << 40, (1 << 40) + 16])}, "gap"),
    "overlap": ({"a": entry(), "b": entry(offsets=[8, 24])}, "overlaps"),
    "gap": ({"a": entry(), "b": entry(offsets=[20, 36])}, "gap"),
    "entry that is no object": ({"w": 7}, "an object was needed"),
    "data cut short": ({"a": entry(), "b": entry(offsets=[16, 32])}, "the file has"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    header, message = HEADERS[name]
    with pytest.raises(CheckpointError, match=message):
        read_safetensors_header(write_header(tmp_path / "m.safetensors", header, bytes(24)))


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry())
    with pytest.raises(CheckpointError, match="stands twice"):
        read_safetensors_header(
            write_header(tmp_path / "m.safetensors", f'{{"w": {one}, "w": {one}}}'.encode(), bytes(16))
        )


def test_deep_nesting_is_refused_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        read_safetensors_header(write_header(tmp_path / "m.safetensors", b"[" * 200_000))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_any_changed_header_byte_is_read_or_refused(position: int, value: int, tmp_path: Path) -> None:
    path = write_header(tmp_path / "m.safetensors", {"a": entry(), "bé": entry("BF16", [8], [16, 32])}, bytes(32))
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] = value
    path.write_bytes(raw)
    try:
        tensors = read_safetensors_header(path)
    except CheckpointError:
        return
    assert sum(tensor.n_bytes for tensor in tensors) <= len(raw)


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
