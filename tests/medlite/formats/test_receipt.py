"""Receipts, read: what `quantize` wrote comes back typed, and a hostile one is an error or says nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from medlite.errors import ArtifactError
from medlite.formats.receipt import read_gguf_receipt, read_onnx_receipt, receipt_path, source_name, stated_sha256

# fmt: off
SOURCE: dict[str, Any] = {"name": "owner/model", "revision": None, "config_sha256": "00",
                          "shards": [{"name": "model.safetensors", "n_bytes": 4, "sha256": None}]}
GGUF: dict[str, Any] = {
    "schema": "medlite-receipt-1", "made_by": {"medlite": "0"}, "source": SOURCE, "recipe": "Q4_K_M", "n_params": 1,
    "bits_per_weight": 4.5, "notes": [], "tokenizer_check": None, "total": {"sqnr_db": None},
    "files": [{"name": "m.gguf", "n_bytes": 9, "sha256": "ab", "header_sha256": "cd", "n_header_bytes": 3}],
    "tensors": [{"name": "w", "type": "Q4_K", "shape": [1, 256], "n_bytes": 144, "file": 0, "sha256": "ef",
                 "source": "w", "reason": "", "sqnr_db": 20.0}],
}
ONNX: dict[str, Any] = {
    "schema": "medlite-onnx-receipt-1", "source": SOURCE, "recipe": "INT4", "block": 32, "device": "cpu", "n_params": 1,
    "bits_per_weight": 4.5, "files": [{"name": "model.onnx", "n_bytes": 9, "sha256": "ab"}], "total": {},
    "tensors": [{"name": "w", "pieces": [{"name": "w", "offset": 0, "n_bytes": 4, "sha256": "ef"}]}],
}
# fmt: on


def test_the_receipt_lies_beside_a_file_and_inside_a_folder(tmp_path: Path) -> None:
    assert receipt_path(tmp_path / "m.gguf") == tmp_path / "m.gguf.receipt.json"
    assert receipt_path(tmp_path) == tmp_path / "receipt.json"


def test_both_kinds_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    receipt_path(path).write_text(json.dumps(GGUF))
    found = read_gguf_receipt(path)
    assert (found.files[0].n_header_bytes, found.tensors[0].shape, found.source.shards[0].sha256) == (3, (1, 256), None)
    receipt_path(tmp_path).write_text(json.dumps(ONNX))
    assert read_onnx_receipt(tmp_path).tensors[0].pieces[0].n_bytes == 4
    receipt_path(tmp_path).write_text(json.dumps(GGUF))
    with pytest.raises(ArtifactError, match="schema 'medlite-receipt-1', expected 'medlite-onnx-receipt-1'") as refused:
        read_onnx_receipt(tmp_path)
    assert refused.value.hint == "a newer medlite may read it"


def with_file(**changed: object) -> dict[str, Any]:
    return GGUF | {"files": [GGUF["files"][0] | changed]}


# name -> (receipt, a part of the message)
HOSTILE: dict[str, tuple[object, str]] = {
    "a list": ([], "expected object, found array"),
    "no schema": ({}, "schema None"),
    "a schema that is a number": (GGUF | {"schema": 1}, "schema: expected str | null, found int"),
    "no tensors": ({key: value for key, value in GGUF.items() if key != "tensors"}, "missing key tensors"),
    "a name above the folder": (with_file(name="../m.gguf"), "files[0].name"),
    "the folder for a name": (with_file(name=".."), "files[0].name"),
    "a name with a null byte": (with_file(name="a\0b"), "files[0].name"),
    "a header that is read to the end": (with_file(n_header_bytes=-1), "files[0].n_header_bytes"),
    "a size beyond a file's": (with_file(n_bytes=1 << 62), "files[0].n_bytes"),
    "a size that is a float": (with_file(n_bytes=9.0), "files[0].n_bytes: expected int, found float"),
    "a shape of texts": (GGUF | {"tensors": [GGUF["tensors"][0] | {"shape": ["1"]}]}, "tensors[0].shape[0]"),
    "a source without a name": (GGUF | {"source": {}}, "source: missing key name"),
}


@pytest.mark.parametrize(("receipt", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_receipt_is_an_error_that_names_the_key(receipt: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    receipt_path(path).write_text(json.dumps(receipt))
    with pytest.raises(ArtifactError) as found:
        read_gguf_receipt(path)
    assert str(found.value).startswith(f"{receipt_path(path)}: ")
    assert message in str(found.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"source": null}', '{"source": {"name": 3}}', "[" * 200_000])
def test_a_receipt_that_cannot_be_read_names_no_source_and_no_hash(content: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"")
    assert (source_name(path), stated_sha256(path, 9)) == ("", "")
    receipt_path(path).write_text(content)
    assert (source_name(path), stated_sha256(path, 9)) == ("", "")


def test_single_facts_are_read_from_a_receipt_that_has_them(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    receipt_path(path).write_text(json.dumps(GGUF))
    assert source_name(path) == "owner/model"
    assert stated_sha256(path, 9) == ""  # the file is not there
    path.write_bytes(b"")
    assert (stated_sha256(path, 9), stated_sha256(path, 8)) == ("ab", "")
    receipt_path(path).write_text(json.dumps(GGUF | {"files": 2 * GGUF["files"]}))
    assert stated_sha256(path, 9) == ""  # in parts
