"""A conversion that was killed continues and ends in the same bytes; nothing half-done gets a final name."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medlite.errors import CheckpointError, OutputError, RecipeError
from medlite.files import part_path
from medlite.formats.receipt import receipt_path
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.journal import journal_path
from quantize.stream.writer import WriteSettings, write
from tests.helpers.places import ROOT
from tests.helpers.tiny_checkpoint import bf16, llama_config, llama_tensors, make_llama, write_safetensors

KILL_AFTER = """
import os, signal, sys
from pathlib import Path
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.stream.writer import WriteSettings, write
folder, limit, signal_number, *names = sys.argv[1:]
seen = 0
def on_bytes(n):
    global seen
    seen += n
    if seen > int(limit):
        os.kill(os.getpid(), int(signal_number))
model = match_checkpoint(open_checkpoint(Path(folder)))
outputs = [plan_gguf(model, RECIPES[name]).output(Path(folder) / f"{name}.gguf") for name in names]
write(outputs, WriteSettings(n_threads=2, on_bytes=on_bytes))
"""


def run_until_killed(folder: Path, limit: int, *recipes: str, signal_number: int = 9) -> None:
    """Run a conversion that kills itself after `limit` output bytes, and see that it died of that."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILL_AFTER, str(folder), str(limit), str(signal_number), *recipes]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal_number, done.stderr


def convert(folder: Path, *recipes: str, **settings: object) -> list[int]:
    """Convert in this process; returns the resumed bytes of each output."""
    model = match_checkpoint(open_checkpoint(folder))
    outputs = [plan_gguf(model, RECIPES[name]).output(folder / f"{name}.gguf") for name in recipes]
    return [one.n_resumed_bytes for one in write(outputs, WriteSettings(**settings))]  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_llama(tmp_path / "m", num_hidden_layers=6)


def whole(folder: Path, recipe: str) -> tuple[bytes, dict[str, object]]:
    """The bytes and the receipt of an uninterrupted conversion, which is removed again."""
    convert(folder, recipe)
    path = folder / f"{recipe}.gguf"
    result = path.read_bytes(), json.loads(receipt_path(path).read_text())
    path.unlink()
    receipt_path(path).unlink()
    return result


@pytest.mark.parametrize("share", [0.05, 0.4, 0.95])
def test_a_killed_conversion_continues_to_the_same_bytes(share: float, folder: Path) -> None:
    expected, receipt = whole(folder, "Q4_K_M")
    run_until_killed(folder, int(share * len(expected)), "Q4_K_M")
    path = folder / "Q4_K_M.gguf"
    assert not path.exists()
    assert part_path(path).exists()
    (resumed,) = convert(folder, "Q4_K_M")
    assert resumed > 0.5 * share * len(expected)
    assert path.read_bytes() == expected
    assert json.loads(receipt_path(path).read_text()) == receipt
    assert not part_path(path).exists()
    assert not journal_path(path).exists()


def test_several_recipes_continue_together(folder: Path) -> None:
    expected = {name: whole(folder, name)[0] for name in ("Q8_0", "Q3_K_M")}
    run_until_killed(folder, 2_000_000, *expected)
    assert all(n > 0 for n in convert(folder, *expected))
    for name, content in expected.items():
        assert (folder / f"{name}.gguf").read_bytes() == content


def test_ctrl_c_leaves_no_final_name_and_can_be_continued(folder: Path) -> None:
    expected, _ = whole(folder, "Q5_K_M")
    run_until_killed(folder, len(expected) // 3, "Q5_K_M", signal_number=2)
    assert not (folder / "Q5_K_M.gguf").exists()
    convert(folder, "Q5_K_M")
    assert (folder / "Q5_K_M.gguf").read_bytes() == expected


def test_a_lost_slab_is_written_again(folder: Path) -> None:
    """After a power cut the journal may know slabs whose bytes never reached the disk."""
    expected, _ = whole(folder, "Q4_K_M")
    run_until_killed(folder, len(expected) // 2, "Q4_K_M")
    part = part_path(folder / "Q4_K_M.gguf")
    with part.open("r+b") as handle:
        handle.seek(40_000)
        handle.write(bytes(20_000))
    convert(folder, "Q4_K_M")
    assert (folder / "Q4_K_M.gguf").read_bytes() == expected


def test_a_journal_cut_in_a_line_is_used_up_to_there(folder: Path) -> None:
    expected, _ = whole(folder, "Q4_K_M")
    run_until_killed(folder, len(expected) // 2, "Q4_K_M")
    journal = journal_path(folder / "Q4_K_M.gguf")
    journal.write_bytes(journal.read_bytes()[:-9])
    assert convert(folder, "Q4_K_M")[0] > 0
    assert (folder / "Q4_K_M.gguf").read_bytes() == expected


def test_a_changed_source_starts_over(folder: Path) -> None:
    run_until_killed(folder, 1_000_000, "Q8_0")
    write_safetensors(folder / "model.safetensors", llama_tensors(llama_config(num_hidden_layers=6), seed=5))
    assert convert(folder, "Q8_0") == [0]


def test_restart_starts_over(folder: Path) -> None:
    run_until_killed(folder, 1_000_000, "Q8_0")
    assert convert(folder, "Q8_0", restart=True) == [0]


def test_an_existing_file_is_kept_unless_forced(folder: Path) -> None:
    path = folder / "Q8_0.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        convert(folder, "Q8_0")
    assert path.read_bytes() == b"mine"
    convert(folder, "Q8_0", force=True)
    assert path.read_bytes()[:4] == b"GGUF"


def test_a_full_disk_is_found_before_the_first_byte(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match="1 kB free"):
        convert(folder, "Q8_0")
    assert not list(folder.glob("*.part*"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_names_tensor_and_row(value: float, folder: Path) -> None:
    tensors = llama_tensors(llama_config(num_hidden_layers=6))
    tensors["model.layers.3.mlp.up_proj.weight"][17, 5] = value
    write_safetensors(folder / "model.safetensors", tensors)
    for recipe in ("Q4_K_M", "BF16", "F16", "IQ4_NL", "F32"):
        with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.up_proj\.weight row 17 "):
            convert(folder, recipe)
        assert not list(folder.glob("*.gguf*")), recipe


def test_a_weight_beyond_float16_is_refused_where_it_would_become_infinite(folder: Path) -> None:
    tensors = llama_tensors(llama_config(num_hidden_layers=6))
    tensors["model.layers.1.mlp.down_proj.weight"][9, 3] = 1e6
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(RecipeError, match=r"blk\.1\.ffn_down\.weight row 9 .*65504"):
        convert(folder, "F16")
    convert(folder, "BF16")


def test_the_receipt_states_the_error_that_a_reader_would_compute(folder: Path) -> None:
    """SQNR and RMSE against the gguf package's own dequantization."""
    import gguf

    convert(folder, "Q4_K_M")
    path = folder / "Q4_K_M.gguf"
    rows = {row["name"]: row for row in json.loads(receipt_path(path).read_text())["tensors"]}
    source = llama_tensors(llama_config(num_hidden_layers=6))
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name not in ("blk.2.ffn_down.weight", "token_embd.weight", "output.weight"):
            continue
        names = {
            "blk.2.ffn_down.weight": "model.layers.2.mlp.down_proj.weight",
            "output.weight": "lm_head.weight",
            "token_embd.weight": "model.embed_tokens.weight",
        }
        exact = (bf16(source[names[tensor.name]]).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        error = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(exact.shape) - exact
        row = rows[tensor.name]
        assert row["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
        assert row["sqnr_db"] == pytest.approx(10 * np.log10((exact**2).sum() / (error**2).sum()), abs=1e-3)
        ratios = (error**2).sum(1) / (exact**2).sum(1)
        assert row["worst_row"] == int(ratios.argmax())


# The command itself; the bar of the conversion says when it has moved, and holds the conversion there.
STOP_AT_A_SLAB = """
import os, sys
from contextlib import contextmanager
from medlite.cli import display, main
@contextmanager
def progress_bar(title, total, **settings):
    def advance(n):
        if n:
            os.write(1, b"moved\\n")
            os.read(0, 1)
    yield advance
display.progress_bar = progress_bar
sys.argv[0] = "medlite"
main()
"""


@pytest.mark.parametrize("options", [("--recipe", "IQ4_NL", "--recipe", "Q3_K_L"), ("--format", "onnx")])
def test_the_command_says_that_it_can_be_continued(options: tuple[str, ...], folder: Path) -> None:
    """Ctrl-C on the real command: exit code 130, a hint, no file under the final name, and it does continue."""
    if "onnx" in options:
        pytest.importorskip("onnx", reason="needs the extra [onnx]")
    arguments = ["quantize", str(folder), *options, "--out", f"{folder}/"]
    process = subprocess.Popen(
        [sys.executable, "-c", STOP_AT_A_SLAB, *arguments],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "moved\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)  # closes standard input, which lets the slab go
    assert process.returncode == 130, stderr
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr
    before = {path.name for path in folder.iterdir()}
    assert {name for name in before if "m-" in name and ".part" not in name} == set()
    done = subprocess.run([sys.executable, "-m", "medlite", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "from the interrupted run" in done.stdout


def test_json_output_lists_files_and_totals(folder: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "medlite",
            "quantize",
            str(folder),
            "--recipe",
            "Q4_K_M",
            "--out",
            str(folder),
            "--json",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    (row,) = json.loads(done.stdout)
    assert row["files"][0]["n_bytes"] == (folder / "m-Q4_K_M.gguf").stat().st_size
    assert 20 < row["total"]["sqnr_db"] < 30
