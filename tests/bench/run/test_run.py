"""Measuring in a process of its own: with a real engine on a tiny file, and with one that dies."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.compare.compare import compare
from bench.run.child import Progress
from bench.run.measure import draw
from bench.run.record import read_record, sample_line
from bench.run.run import RunRequest, run_task
from bench.settings import Prompting, RunSettings
from medlite.errors import ArtifactError, EngineError, MedliteError, OutputError, TaskError
from medlite.files import part_path
from tests.helpers.bench_toys import make_sample, write_questions
from tests.helpers.tiny_gguf import write_tiny_gguf

FAST = RunSettings(measure_speed=False, n_group=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "drugs.jsonl"
    write_questions(path, 12)
    return path


def test_a_real_engine_is_measured_from_file_to_record(model: Path, questions: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    record = run_task(RunRequest(model, "local", data=questions, out=tmp_path / "run.jsonl"), seen.append)
    assert record.complete
    assert (record.task.name, record.task.n_samples) == ("local:drugs.jsonl", 12)
    assert [s.id for s in record.samples] == [f"q{i}" for i in range(12)]
    assert (record.artifact.n_bytes, len(record.artifact.sha256)) == (model.stat().st_size, 64)
    costs = record.performance
    assert costs.peak_rss_bytes > record.artifact.n_bytes
    assert 0 < costs.weights_resident_bytes <= 2 * record.artifact.n_bytes
    one_sequence = 2 * 2 * 512 * 2 * 64 * 2  # keys and values, layers, context, heads, dims, f16
    assert costs.kv_cache_bytes >= one_sequence  # as allocated: scoring holds several sequences
    assert costs.kv_cache_bytes % one_sequence == 0
    assert costs.peak_vram_bytes is None
    assert min(costs.prefill_tokens_per_second, costs.load_seconds, costs.questions_per_second) > 0
    assert {p.phase for p in seen} == {"hash", "load", "speed", "score"}
    assert seen[-1] == Progress("score", 12, 12)


def test_two_runs_of_one_file_are_equal_to_the_last_digit(model: Path, questions: Path) -> None:
    one, two = (run_task(RunRequest(model, "local", FAST, data=questions)) for _ in range(2))
    assert [sample_line(s) for s in one.samples] == [sample_line(s) for s in two.samples]
    assert compare(one, two).flips == ()


def test_a_resumed_run_equals_an_uninterrupted_one(model: Path, questions: Path, tmp_path: Path) -> None:
    whole = run_task(RunRequest(model, "local", FAST, data=questions, out=tmp_path / "whole.jsonl"))
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    part_path(tmp_path / "run.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])
    resumed = run_task(RunRequest(model, "local", FAST, data=questions, out=tmp_path / "run.jsonl", resume=True))
    assert [sample_line(s) for s in resumed.samples] == [sample_line(s) for s in whole.samples]
    assert resumed.performance.n_scored == 12 - 3
    assert any("resumed" in note for note in resumed.performance.notes)


def test_a_run_that_was_killed_goes_on_and_equals_an_uninterrupted_one(
    model: Path, questions: Path, tmp_path: Path
) -> None:
    """SIGKILL to the command and its measuring process, in the middle of a group of questions."""
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    many = tmp_path / "many.jsonl"
    many.write_text(
        "".join(
            json.dumps({**row, "id": f"{i}-{row['id']}", "question": f"{i}. {row['question']}"}) + "\n"
            for i in range(150)
            for row in rows
        )
    )
    out = tmp_path / "run.jsonl"
    command = [
        sys.executable,
        "-m",
        "medlite",
        "bench",
        "run",
        str(model),
        "--data",
        str(many),
        "--no-speed",
        "-o",
        str(out),
    ]
    started = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while started.poll() is None and not (
            part_path(out).is_file() and part_path(out).read_bytes().count(b"\n") > 200
        ):
            time.sleep(0.002)
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    assert not out.exists(), "it was done before it could be killed"
    n_kept = len(read_record(part_path(out)).samples)
    assert 200 <= n_kept < 1800
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    resumed = read_record(out)
    whole = run_task(RunRequest(model, "local", resumed.settings, data=many))
    assert resumed.performance.n_scored == 1800 - n_kept + n_kept % resumed.settings.n_group
    assert [sample_line(s) for s in resumed.samples] == [sample_line(s) for s in whole.samples]
    assert dataclasses.replace(resumed, performance=whole.performance, samples=whole.samples) == whole


def test_a_finished_record_is_not_overwritten(model: Path, questions: Path, tmp_path: Path) -> None:
    run_task(RunRequest(model, "local", FAST, data=questions, out=tmp_path / "run.jsonl"))
    with pytest.raises(OutputError, match="exists already"):
        run_task(RunRequest(model, "local", FAST, data=questions, out=tmp_path / "run.jsonl"))


def test_a_model_that_returns_nan_fails_loudly(questions: Path, tmp_path: Path) -> None:
    poisoned = write_tiny_gguf(tmp_path / "poisoned.gguf", poison=True)
    with pytest.raises(EngineError, match="NaN or infinite"):
        run_task(RunRequest(poisoned, "local", FAST, data=questions))


@pytest.mark.parametrize(
    ("artifact", "task", "error"), [("gone.gguf", "local", ArtifactError), ("tiny.gguf", "medqa_of_mars", TaskError)]
)
def test_an_error_of_the_child_arrives_as_itself(
    model: Path, questions: Path, artifact: str, task: str, error: type[MedliteError]
) -> None:
    with pytest.raises(error):
        run_task(RunRequest(model.with_name(artifact), task, FAST, data=questions))


def test_noise_on_the_childs_stdout_does_not_disturb(model: Path, questions: Path) -> None:
    record = run_task(RunRequest(model, "local", FAST, data=questions), worker="tests.helpers.toy_worker")
    assert [s.correct for s in record.samples][::2] == [True] * 6


@pytest.mark.parametrize(
    ("seed", "message"),
    [(901, "was killed .SIGKILL.: the system may have run out of memory"), (902, "exit code 1\nloading went wrong")],
)
def test_a_child_that_dies_is_reported_with_its_reason(model: Path, questions: Path, seed: int, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        run_task(
            RunRequest(model, "local", RunSettings(Prompting(seed=seed)), data=questions),
            worker="tests.helpers.toy_worker",
        )


def test_a_limit_draws_a_seeded_sample_in_file_order() -> None:
    samples = [make_sample(i) for i in range(100)]
    drawn = draw(samples, 10, seed=1)
    assert drawn == draw(samples, 10, seed=1) != draw(samples, 10, seed=2)
    assert [s.id for s in drawn] == sorted((s.id for s in drawn), key=lambda name: int(name[1:]))
    assert draw(samples, 0, seed=1) == draw(samples, 1000, seed=1) == samples
