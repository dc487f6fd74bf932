"""`medlite quantize` as a user calls it: plans, refusals, what is recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.places import ROOT
from tests.helpers.tiny_checkpoint import make_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_llama(tmp_path / "tiny")


def quantize(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medlite", "quantize", str(folder), "--out", str(folder / "out"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def other_case(folder: Path) -> None:
    """Make the source's tokenizer read lower case only, which no GGUF key says."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(tokenizer))


def test_a_dry_run_writes_nothing_and_names_every_tensor(folder: Path) -> None:
    done = quantize(folder, "--dry-run", "--json", "--recipe", "Q4_K_M", "--recipe", "BF16")
    assert done.returncode == 0, done.stderr
    plans = json.loads(done.stdout)["plans"]
    assert [plan["recipe"] for plan in plans] == ["Q4_K_M", "BF16"]
    assert plans[0]["n_bytes"] < plans[1]["n_bytes"]
    assert len(plans[0]["tensors"]) == 21
    assert not (folder / "out").exists()


def test_a_tokenizer_that_reads_otherwise_is_refused_unless_allowed_and_recorded(folder: Path) -> None:
    other_case(folder)
    done = quantize(folder, "--recipe", "Q8_0")
    assert done.returncode == 1
    assert "--allow-mismatch" in done.stderr
    assert not list((folder / "out").glob("*.gguf"))
    done = quantize(folder, "--recipe", "Q8_0", "--allow-mismatch")
    assert done.returncode == 0, done.stderr
    assert "tokenizer:" in done.stdout
    receipt = json.loads((folder / "out" / "tiny-Q8_0.gguf.receipt.json").read_text())
    assert receipt["tokenizer_check"]["mismatches"]


def test_several_recipes_share_a_folder_not_a_file(folder: Path) -> None:
    done = quantize(folder, "--recipe", "Q8_0", "--recipe", "Q4_0", "--out", str(folder / "one.gguf"))
    assert done.returncode == 1
    assert "one file for several recipes" in done.stderr


def test_a_file_where_a_folder_must_be_made_is_explained(folder: Path) -> None:
    (folder / "out").write_text("notes")
    done = quantize(folder, "--recipe", "Q8_0")
    assert done.returncode == 1
    assert "out: cannot be made a folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "out").read_text() == "notes"


def test_the_recipe_table_is_printed(folder: Path) -> None:
    done = quantize(folder, "--list-recipes")
    assert done.returncode == 0
    assert "Q4_K_M" in done.stdout
    assert "needed" in done.stdout


@pytest.mark.parametrize(
    ("option", "message", "status"),
    [
        (("--tensor-type", "ffn_down"), "REGEX=TYPE was needed", 1),
        (("--tensor-type", "(=Q8_0"), "no regular expression", 1),
        (("--max-shard-size", "lots"), "'lots' is not a size", 2),
        (("--imatrix", "absent.dat"), "No such file", 1),
    ],
)
def test_a_malformed_option_is_explained(option: tuple[str, str], message: str, status: int, folder: Path) -> None:
    done = quantize(folder, *option)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
