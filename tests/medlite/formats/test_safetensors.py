"""Hostile safetensors headers: an error that names the file, the tensor and what is wrong, never a crash or a hang."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medlite.errors import CheckpointError
from medlite.formats.safetensors import read_safetensors_header


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
    "no JSON": (struct.pack("<Q", 4) + b"\xff\xfe{}", "header: not UTF-8"),
    "not an object": (struct.pack("<Q", 2) + b"[]", "header: expected object, found array"),
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
    "dtype of another type": ({"w": entry(dtype=["F32"])}, "w: dtype: expected str, found array"),
    "negative size": ({"w": entry(shape=[-1, 4])}, "w: shape"),
    "fractional size": ({"w": entry(shape=[1.5])}, r"w: shape\[0\]: expected int, found float"),
    "overflowing size": ({"w": entry(shape=[1 << 60, 1 << 60])}, r"w: shape\[0\]: expected int <="),
    "bytes that contradict the shape": ({"w": entry(offsets=[0, 12])}, "needs 16"),
    "offsets backwards": ({"w": entry(offsets=[16, 0])}, "needs 16"),
    "offset beyond the file": ({"w": entry(offsets=[1 << 40, (1 << 40) + 16])}, "gap"),
    "overlap": ({"a": entry(), "b": entry(offsets=[8, 24])}, "overlaps"),
    "gap": ({"a": entry(), "b": entry(offsets=[20, 36])}, "gap"),
    "three offsets": ({"w": entry(offsets=[0, 16, 32])}, "w: data_offsets"),
    "a size of 5,000 digits": (
        b'{"w": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 16]}}' % (b"9" * 5000),
        r"w: shape\[0\]: Integer value out of range",
    ),
    "no offsets": ({"w": {"dtype": "F32", "shape": [4]}}, "w: missing key data_offsets"),
    "entry that is no object": ({"w": 7}, "w: expected object, found int"),
    "data cut short": ({"a": entry(), "b": entry(offsets=[16, 32])}, "the file has"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    header, message = HEADERS[name]
    with pytest.raises(CheckpointError, match=message):
        read_safetensors_header(write_header(tmp_path / "m.safetensors", header, bytes(24)))


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry())
    with pytest.raises(CheckpointError, match="header: duplicate key 'w'"):
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
