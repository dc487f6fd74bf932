"""Run one question set on one artifact, each measurement in a process of its own. The child is `bench.run.worker`."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.run.measure import OnProgress, Progress
from bench.run.record import ArtifactFacts, RunRecord, RunSettings, read_record
from bench.text.distance import TextDistance, distance_from_json
from bench.text.perplexity import TextScore
from medlite import errors
from medlite.errors import EngineError, MedliteError

STDERR_LINES_SHOWN = 5
STOP_SECONDS = 10


def run_in_child(
    artifact_path: Path,
    task_name: str,
    settings: RunSettings | None = None,
    *,
    data: Path | None = None,
    shots_data: Path | None = None,
    out: Path | None = None,
    resume: bool = False,
    force: bool = False,
    on_progress: OnProgress | None = None,
    worker: str = "bench.run.worker",
) -> RunRecord:
    """The record of one question set on one artifact, measured in a fresh Python process.

    data, shots_data: files of the user's own, instead of the task's published ones. out: where the record is kept;
    None keeps none. resume continues `out`'s unfinished part. Errors of the child are raised here as they were raised
    there. worker: the module that the child runs.
    """
    with tempfile.TemporaryDirectory(prefix="medlite-run-") as folder:
        path = out or Path(folder) / "run.jsonl"
        request = {
            "artifact": str(artifact_path),
            "task": task_name,
            "settings": asdict(settings or RunSettings()),
            "data": str(data) if data else None,
            "shots_data": str(shots_data) if shots_data else None,
            "out": str(path),
            "resume": resume,
            "force": force,
        }
        _talk(request, on_progress, worker)
        return read_record(path)


def text_in_child(
    artifact_path: Path,
    text: Path,
    settings: RunSettings | None = None,
    *,
    keep: Path | None = None,
    against: Path | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[TextScore, TextDistance | None]:
    """The score of one artifact on a text file, in a fresh process. settings.n_context is the length of a chunk.

    keep: write the distributions to this file, settings.max_tokens of each. against: such a file of the baseline's,
    from which the distance is taken.
    """
    request = {
        "artifact": str(artifact_path),
        "settings": asdict(settings or RunSettings()),
        "text": str(text),
        "keep": str(keep) if keep else None,
        "against": str(against) if against else None,
    }
    value = _talk(request, on_progress, "bench.run.worker")
    score = value["score"]
    distance = value["distance"]
    return (
        TextScore(
            **{**score, "artifact": ArtifactFacts(**score["artifact"]), "chunk_nats": tuple(score["chunk_nats"])}
        ),
        distance and distance_from_json(distance),
    )


def _talk(request: Mapping[str, Any], on_progress: OnProgress | None, worker: str) -> dict[str, Any]:
    """The worker's result on `request`. Raises its error, or EngineError if it died."""
    with tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            errors="replace",
            env=_environment(),
        )
        done = False
        result: dict[str, Any] = {}
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                message = json.loads(line)
                if "error" in message:
                    raise _error(message["error"])
                if "progress" in message and on_progress:
                    on_progress(Progress(*message["progress"]))
                done = done or "done" in message
                result = message.get("result", result)
            child.wait()
        finally:
            _stop(child)
        if not done:
            stderr.seek(0)
            raise _death(child.returncode, stderr.read().decode(errors="replace"))
        return result


def _environment() -> dict[str, str]:
    """The parent's environment, with the parent's import path: the child runs this code, not another's of that name."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _stop(child: "subprocess.Popen[str]") -> None:
    """End the child if it still runs, and wait for it."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe:
            pipe.close()


def _error(value: Mapping[str, Any]) -> MedliteError:
    """The child's error, of the same class where that class takes a message and a hint."""
    kind = getattr(errors, str(value["type"]), MedliteError)
    if not issubclass(kind, MedliteError) or kind is errors.MissingExtraError:
        kind = MedliteError
    return kind(str(value["message"]), hint=value.get("hint"))


def _death(code: int, stderr: str) -> EngineError:
    """Why a child that said nothing is gone."""
    if code == -signal.SIGKILL:
        why = "was killed (SIGKILL): the system may have run out of memory"
    elif code < 0:
        why = f"died of {signal.Signals(-code).name}"
    else:
        why = f"ended with exit code {code}"
    last = "\n".join(stderr.strip().splitlines()[-STDERR_LINES_SHOWN:])
    return EngineError(
        f"the measuring process {why}" + (f"\n{last}" if last else ""), hint="--resume continues where it stopped"
    )
