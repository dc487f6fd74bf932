"""The facts of a measured artifact: of a GGUF file and of a checkpoint folder."""

import dataclasses
from pathlib import Path

import pytest

from bench.run.artifacts import facts_of, look_at, source_of
from bench.run.memory import allocated_kv_bytes, mapped_bytes_of
from medlite.errors import ArtifactError, CheckpointError
from tests.helpers.tiny_checkpoint import make_llama
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.toy_engine import ToyEngine


def test_a_checkpoint_folder_is_described_by_its_headers(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "tiny", n_shards=3, dtype="F16")
    read = 0

    def on_bytes(n: int) -> None:
        nonlocal read
        read += n

    measured = look_at(folder)
    facts = facts_of(measured, on_bytes)
    assert (facts.format, facts.recipe, facts.bits_per_weight) == ("safetensors", "F16", 16.0)
    assert read == facts.n_bytes == sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert measured.n_context_trained == 512
    assert measured.kv_cache_bytes(100) == 0


def test_one_changed_byte_is_another_artifact(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf")
    first = facts_of(look_at(path), lambda n: None)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    second = facts_of(look_at(path), lambda n: None)
    assert first.sha256 != second.sha256
    assert (first.n_params, first.bits_per_weight) == (second.n_params, 32.0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "too short for a safetensors file"),
        (b"\xff" * 8 + b"{}", "header of 18446744073709551615 bytes announced"),
        (b"\x02" + b"\0" * 7 + b"[]", "header: expected object, found array"),
        (b"\x09" + b"\0" * 7 + b'{"a": {}}', "a: missing key dtype"),
        (b"\x05" + b"\0" * 7 + b"{", "announced"),
        (b"\x02" + b"\0" * 7 + b"{}", "hold no weights"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises((ArtifactError, CheckpointError), match=message):
        facts_of(look_at(tmp_path), lambda n: None)


def test_a_folder_without_weights_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a folder, a GGUF file was needed"):
        look_at(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ArtifactError, match=r"config.json and \*.safetensors were needed"):
        look_at(tmp_path)


SMAPS = """7f00-7f10 r--s 00000000 08:01 11 {folder}/m-00001-of-00002.gguf
Size:               2048 kB
Rss:                1000 kB
7f10-7f20 r--s 00000000 08:01 12 {folder}/m-00002-of-00002.gguf
Rss:                 500 kB
7f20-7f30 r--s 00000000 08:01 13 {folder}/m.gguf
Rss:                  30 kB
7f30-7f40 r--s 00000000 08:01 14 {folder}/m/model.onnx.data
Rss:                   4 kB
7f40-7f50 rw-p 00000000 00:00 0
Rss:                9999 kB
7f50-7f60 rw-p 00000000 00:00 0                          [heap]
Rss:                9999 kB
"""


@pytest.mark.parametrize(("name", "kib"), [("m-00001-of-00002.gguf", 1500), ("m.gguf", 30), ("m", 4), ("other", 0)])
def test_mapped_weights_are_those_of_the_file_all_its_shards_or_the_folder(tmp_path: Path, name: str, kib: int) -> None:
    smaps = tmp_path / "smaps"
    smaps.write_text(SMAPS.format(folder=tmp_path))
    assert mapped_bytes_of(tmp_path / name, smaps) == 1024 * kib
    assert mapped_bytes_of(tmp_path / name, tmp_path / "no-proc") == 0


def test_the_runtimes_own_word_on_its_cache_is_taken_over_all_devices() -> None:
    info = dataclasses.replace(ToyEngine().info, buffer_bytes={"CUDA0 KV": 5, "CPU KV": 7, "CPU compute": 100})
    assert allocated_kv_bytes(info) == 12
    assert allocated_kv_bytes(ToyEngine().info) == 0


def test_the_source_is_what_the_receipt_names_or_where_the_checkpoint_lies(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf")
    assert facts_of(look_at(path), lambda n: None).source == ""
    receipt = tmp_path / "a.gguf.receipt.json"
    receipt.write_text('{"source": {"name": "owner/model"}}')
    assert facts_of(look_at(path), lambda n: None).source == "owner/model"
    for damaged in ("{", "[]", '{"source": {"name": 3}}', '{"source": null}'):
        receipt.write_text(damaged)
        assert source_of(path) == ""
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    assert source_of(snapshot) == "owner/model"
    (snapshot / "receipt.json").write_text('{"source": {"name": "other"}}')  # an ONNX folder keeps its receipt inside
    assert source_of(snapshot) == "other"
    assert source_of(tmp_path) == tmp_path.name
