"""`verify` finds every changed byte, names what is wrong, and accepts files made elsewhere."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medlite.formats.gguf import read_header
from medlite.formats.receipt import receipt_path
from quantize.check import verify
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.writer import write
from tests.helpers.llama_quantize import llama_quantize
from tests.helpers.places import ROOT
from tests.helpers.tiny_checkpoint import llama_config, llama_tensors, make_llama, write_safetensors


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint folder and its Q4_K_M artifact."""
    folder = make_llama(tmp_path / "m", num_hidden_layers=2)
    path = tmp_path / "m.gguf"
    write([plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q4_K_M"]).output(path)])
    return folder, path


def flip(path: Path, position: int, mask: int = 1) -> None:
    with path.open("r+b") as handle:
        handle.seek(position)
        byte = handle.read(1)[0]
        handle.seek(position)
        handle.write(bytes([byte ^ mask]))


def test_a_sound_file_has_no_problems(made: tuple[Path, Path]) -> None:
    folder, path = made
    found = verify(path, against=open_checkpoint(folder))
    assert found.ok
    assert all(one.identical for one in found.comparisons)
    assert len(found.comparisons) == len(read_header(path).tensors)


def test_every_flipped_bit_is_found(made: tuple[Path, Path]) -> None:
    """Header, padding and data alike; a sample of positions, each flipped and flipped back."""
    _, path = made
    source = random.Random(3)
    size, data_start = path.stat().st_size, read_header(path).data_start
    positions = [
        *source.sample(range(data_start), 40),
        *source.sample(range(data_start, size), 40),
        data_start - 1,
        size - 1,
    ]
    for position in positions:
        mask = 1 << source.randrange(8)
        flip(path, position, mask)
        assert not verify(path).ok, f"byte {position} of {size}"
        flip(path, position, mask)
    assert verify(path).ok


def test_a_changed_tensor_is_named(made: tuple[Path, Path]) -> None:
    _, path = made
    header = read_header(path)
    tensor = next(t for t in header.tensors if t.name == "blk.1.ffn_up.weight")
    flip(path, header.data_start + tensor.offset + 20)
    assert "blk.1.ffn_up.weight has changed" in verify(path).problems[0]


def test_a_truncated_file_is_named(made: tuple[Path, Path]) -> None:
    _, path = made
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size - 5000)
    (problem,) = verify(path).problems
    assert "blk.1.ffn_up.weight" in problem
    assert "ends at byte" in problem


def test_nan_is_found_without_a_receipt(made: tuple[Path, Path]) -> None:
    _, path = made
    receipt_path(path).unlink()
    header = read_header(path)
    tensor = next(t for t in header.tensors if t.name == "output_norm.weight")
    with path.open("r+b") as handle:
        handle.seek(header.data_start + tensor.offset + 8)
        handle.write(np.float32(np.nan).tobytes())
    (problem,) = verify(path).problems
    assert "output_norm.weight" in problem
    assert "NaN" in problem


def test_a_file_of_llama_quantize_is_accepted_and_equal(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = made
    bf16, theirs = tmp_path / "bf16.gguf", tmp_path / "theirs.gguf"
    write([plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["BF16"]).output(bf16)])
    llama_quantize(bf16, theirs, RECIPES["Q5_K_M"].file_type)
    found = verify(theirs, against=open_checkpoint(folder))
    assert found.ok
    assert all(one.identical for one in found.comparisons)


def test_another_models_weights_are_told_apart(made: tuple[Path, Path]) -> None:
    folder, path = made
    write_safetensors(folder / "model.safetensors", llama_tensors(llama_config(), seed=9))
    found = verify(path, against=open_checkpoint(folder))
    assert not found.ok
    assert "is not the source's tensor" in found.problems[0]


def test_a_tensor_of_another_shape_than_the_sources_is_a_finding(made: tuple[Path, Path], tmp_path: Path) -> None:
    """It cannot be compared, and must not be passed over for that."""
    _, path = made
    wide = make_llama(tmp_path / "wide", num_hidden_layers=2, intermediate_size=768)
    found = verify(path, against=open_checkpoint(wide))
    assert any("blk.0.ffn_up.weight has shape" in problem for problem in found.problems)
    assert "blk.0.ffn_up.weight" not in {one.name for one in found.comparisons}


def test_a_renamed_file_is_checked_itself_and_not_what_bears_its_old_name(made: tuple[Path, Path]) -> None:
    _, path = made
    copy = path.with_name("renamed.gguf")
    copy.write_bytes(path.read_bytes())
    receipt_path(copy).write_bytes(receipt_path(path).read_bytes())
    assert verify(copy).ok
    flip(copy, copy.stat().st_size - 40)
    assert str(copy) in verify(copy).problems[0]
    path.unlink()
    assert str(copy) in verify(copy).problems[0]


def test_a_receipt_of_several_files_covers_them_all(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", num_hidden_layers=4)
    plan = plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q8_0"], max_shard_bytes=600_000)
    path = tmp_path / "m.gguf"
    write([plan.output(path)])
    assert verify(path).ok
    first, *_, last = plan.paths(path)
    assert verify(first).ok
    assert verify(first).checked[-1] == "receipt m.gguf.receipt.json"
    flip(last, last.stat().st_size - 40)
    for one in (path, first, last):
        assert last.name in verify(one).problems[0]
    other = first.with_name("m-00001-of-00009.gguf")
    other.write_bytes(first.read_bytes())
    assert "not one of the" in verify(other).problems[0]


def test_a_damaged_receipt_is_a_finding_not_a_crash(made: tuple[Path, Path]) -> None:
    _, path = made
    receipt = receipt_path(path)
    whole = json.loads(receipt.read_text())
    halves = [
        json.dumps(whole | {"files": [{"name": "../../other.gguf"}]}),
        json.dumps({key: value for key, value in whole.items() if key != "tensors"}),
        json.dumps(whole | {"tensors": [{"name": row["name"]} for row in whole["tensors"]]}),
    ]
    for content in ("", "{}", '{"schema": "medlite-receipt-1"}', '{"schema": "medlite-receipt-9"}', *halves):
        receipt.write_text(content)
        assert not verify(path).ok


def test_the_command_exits_with_one_and_names_the_tensor(made: tuple[Path, Path]) -> None:
    _, path = made
    flip(path, path.stat().st_size - 100)
    done = subprocess.run(
        [sys.executable, "-m", "medlite", "verify", str(path), "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "blk.1.ffn_up.weight" in json.loads(done.stdout)["problems"][0]
