"""The measured loss of an artifact, from the run records that lie near its file."""

import dataclasses
import json
from pathlib import Path

import pytest

from bench.compare.nearby import find_losses
from bench.run.record import RecordWriter, RunRecord
from medlite.cli.chat.loss import loss_line, short_loss, signed
from medlite.files import file_sha256
from medlite.formats.artifact import Artifact, open_artifact
from tests.helpers.bench_toys import answers, record_of
from tests.helpers.tiny_gguf import write_tiny_gguf


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path / "cache"))


RIGHT, WRONG = 0, 1


def put_record(path: Path, record: RunRecord) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with RecordWriter(path, record) as writer:
        for sample in record.samples:
            writer.add(sample)
        writer.finish(record.performance, record.samples)


def put_pair(artifact: Artifact, baseline_path: Path, path: Path, **changes: object) -> None:
    """Records of a baseline that is right 20 times of 20, and of the artifact that is right 18 times."""
    before, after = record_of(answers([RIGHT] * 20)), record_of(answers([RIGHT] * 18 + [WRONG] * 2), recipe="Q4_K_M")
    facts = dataclasses.replace(after.artifact, sha256=file_sha256(artifact.path), n_bytes=artifact.n_bytes)
    put_record(baseline_path, before)
    put_record(path, dataclasses.replace(after, artifact=facts, **changes))  # type: ignore[arg-type]


@pytest.fixture
def low_bits(tmp_path: Path) -> Artifact:
    path = write_tiny_gguf(tmp_path / "toy-Q4_K_M.gguf")
    return dataclasses.replace(open_artifact(path), recipe="Q4_K_M")


@pytest.mark.parametrize(
    "places",
    [
        ("a.jsonl", "b.jsonl"),
        ("x-runs/demo.jsonl", "y-runs/demo.jsonl"),
        ("cache/runs/a.jsonl", "cache/runs/deep/b.jsonl"),
    ],
)
def test_the_loss_is_found_beside_the_artifact_or_in_the_cache(
    low_bits: Artifact, tmp_path: Path, places: tuple[str, str]
) -> None:
    put_pair(low_bits, tmp_path / places[0], tmp_path / places[1])
    (loss,) = find_losses(low_bits)
    assert (loss.points, loss.task, loss.n, loss.baseline) == (pytest.approx(-10), "demo", 20, "BF16")
    assert loss.low < -10 < loss.high
    assert short_loss(loss) == "−10.0 points on demo"
    interval = f"[{signed(loss.low)}, {signed(loss.high)}]"
    assert loss_line([loss], low_bits) == (f"Measured: accuracy −10.0 points {interval} against BF16 (demo, n = 20)")


def test_the_receipt_spares_hashing_the_file(low_bits: Artifact, tmp_path: Path) -> None:
    put_pair(low_bits, tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    receipt = {"schema": "medlite-receipt-1", "files": [{"n_bytes": low_bits.n_bytes, "sha256": "00" * 32}]}
    low_bits.path.with_name(low_bits.path.name + ".receipt.json").write_text(json.dumps(receipt))
    assert find_losses(low_bits) == []


def test_records_that_say_nothing_of_the_artifact_are_no_loss(low_bits: Artifact, tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text("{}\n")
    (tmp_path / "torn.jsonl").write_bytes(b"\xff\xfe{")
    assert find_losses(low_bits) == []
    put_pair(low_bits, tmp_path / "a.jsonl", tmp_path / "b.jsonl", prompts_sha256="99" * 32)
    assert find_losses(low_bits) == []
    assert "not measured here" in loss_line([], low_bits)
    whole = dataclasses.replace(low_bits, recipe="BF16")
    assert (find_losses(whole), loss_line([], whole)) == ([], "")
