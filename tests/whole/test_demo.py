"""The main job, end to end: quantize the embedded checkpoint, measure it, show the loss. Offline."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.places import ROOT


def demo(cache: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medlite", "demo", "--device", "cpu", *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "MEDLITE_CACHE": str(cache)},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The cache after one demo, and what it printed as JSON."""
    cache = tmp_path_factory.mktemp("cache")
    done = demo(cache, "--json")
    assert done.returncode == 0, done.stderr
    return cache, json.loads(done.stdout)


def test_full_precision_knows_its_facts_and_two_bits_forget_some(made: tuple[Path, dict[str, Any]]) -> None:
    """What the demo exists to show: BF16 >= 85 %, Q8_0 within a point of it, a visible loss at Q2_K."""
    rows = {row["name"]: row for row in made[1]["artifacts"]}
    bf16, q8, q4, q2 = (
        next(row for name, row in rows.items() if name.endswith(recipe))
        for recipe in ("BF16", "Q8_0", "Q4_K_M", "Q2_K")
    )
    assert made[1]["n_questions"] >= 1000
    assert bf16["accuracy"]["value"] >= 0.85
    assert abs(q8["loss_points"]["value"]) <= 1
    assert q2["loss_points"]["low"] > 0
    assert bf16["n_bytes"] > q8["n_bytes"] > q4["n_bytes"] > q2["n_bytes"]
    assert q2["right_to_wrong"] > q8["right_to_wrong"]
    for row in rows.values():
        assert row["accuracy"]["low"] < row["accuracy"]["value"] < row["accuracy"]["high"]
        assert row["peak_rss_bytes"] > row["n_bytes"] / 2
        assert row["prefill_tokens_per_second"] > row["decode_tokens_per_second"] > 0


def test_a_second_demo_reads_what_the_first_measured(made: tuple[Path, dict[str, Any]]) -> None:
    cache, first = made
    records = {path: path.stat().st_mtime_ns for path in (cache / "demo").iterdir()}
    done = demo(cache)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in (cache / "demo").iterdir()} == records
    for words in ("Q2_K", "accuracy", "medlite chat demo", "medlite bench sweep"):
        assert words in done.stdout
    assert max(map(len, done.stdout.split("The files")[0].splitlines())) <= 80
    assert len(first["artifacts"]) == 4


def test_the_demo_model_answers_in_chat(made: tuple[Path, dict[str, Any]]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "medlite", "generate", "demo", "What class of drug is metformin?", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "MEDLITE_CACHE": str(made[0])},
    )
    assert done.returncode == 0, done.stderr
    assert "biguanide" in done.stdout.lower()
