"""A GGUF file and an ONNX folder of one checkpoint, each on its own runtime, in one report."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from medlite.demo import checkpoint_path
from tests.helpers.places import ROOT

pytest.importorskip("onnxruntime")


def medlite(folder: Path, command: str) -> str:
    """What `command` prints, run in `folder`; it must succeed."""
    environment = {**os.environ, "MEDLITE_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "medlite", *shlex.split(command)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint at full precision and at 8 bits in both formats, each with a record of 60 questions."""
    path = tmp_path_factory.mktemp("formats")
    medlite(path, f"quantize {checkpoint_path()} --recipe BF16 --recipe Q8_0 --no-measure --json --out .")
    medlite(path, f"quantize {checkpoint_path()} --recipe q8 --format onnx --no-measure --json --out demo-q8")
    for name in ("checkpoint-BF16.gguf", "checkpoint-Q8_0.gguf", "demo-q8"):
        medlite(path, f"bench run {name} --limit 60 --json -o {name}.jsonl")
    return path


def test_one_report_shows_agreement_size_speed_and_memory_of_both_formats(folder: Path) -> None:
    text = medlite(
        folder,
        "bench compare checkpoint-BF16.gguf.jsonl checkpoint-Q8_0.gguf.jsonl demo-q8.jsonl --report r.html --json",
    )
    (task,) = json.loads(text)["tasks"]
    gguf, onnx = task["candidates"]
    assert [one["artifact"]["format"] for one in (gguf, onnx)] == ["gguf", "onnx"]
    assert gguf["artifact"]["source"] == onnx["artifact"]["source"] == "checkpoint"
    for one in (gguf, onnx):
        comparison, costs = one["comparison"], one["performance"]
        assert comparison["top_token_agreement"]["value"] > 0.9
        assert comparison["vocabulary_kl"]["mean"]["value"] < 0.01
        assert abs(comparison["loss_points"]["value"]) < 5
        assert 8.5 < one["artifact"]["bits_per_weight"] < 8.6
        assert costs["prefill_tokens_per_second"] > 0
        assert costs["decode_tokens_per_second"] > 0
        assert costs["kv_cache_bytes"] > 0
        assert costs["peak_rss_bytes"] > one["artifact"]["n_bytes"]
        assert costs["peak_vram_bytes"] is None
    page = (folder / "r.html").read_text()
    assert "llamacpp, cpu" in page
    assert "ort, cpu" in page


def test_the_two_formats_agree_with_each_other_more_closely_than_the_bits_cost(folder: Path) -> None:
    text = medlite(folder, "bench compare checkpoint-Q8_0.gguf.jsonl demo-q8.jsonl --json")
    comparison = json.loads(text)["tasks"][0]["candidates"][0]["comparison"]
    assert comparison["top_token_agreement"]["value"] > 0.9
    assert comparison["flip_counts"]["right_to_wrong"] <= 2
