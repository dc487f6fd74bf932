"""The proof that nothing leaves the machine: every kind of work, done with the internet forbidden."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medlite.errors import ArtifactError
from medlite.offline import ATTEMPT_EXIT_CODE, ATTEMPT_MARK

RECIPE = "Q4_K_M"
STEP_SECONDS = 600
STDERR_LINES_SHOWN = 3

# Telemetry that dependencies send unless told otherwise must be told before they load: the child's own environment
# says nothing of it, so that medlite has to.
TELEMETRY_VARIABLES = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_OFFLINE")
GUARDED = (
    "from medlite.offline import forbid_internet; import sys; "
    "sys.stderr.write('guards: ' + ' '.join(forbid_internet()) + chr(10)); "
    "from medlite.cli import main; main()"
)


@dataclass(frozen=True)
class Step:
    """One command of the proof. stdin: what is piped in."""

    name: str
    arguments: tuple[str, ...]
    stdin: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a step. guards: those that held. said: the last lines of stderr where it failed."""

    step: Step
    ok: bool
    attempted: bool
    guards: tuple[str, ...]
    said: str = ""


def proof_steps(checkpoint: Path, questions: Path, folder: Path) -> list[Step]:
    """The commands, in order: each kind of work once, on a checkpoint and question file small enough for a moment."""
    model = folder / f"{checkpoint.resolve().name}-{RECIPE}.gguf"
    steps = [
        Step("quantize", ("quantize", str(checkpoint), "--recipe", RECIPE, "--out", str(folder), "--threads", "1")),
        Step("verify", ("verify", str(model), "--against", str(checkpoint))),
        Step("generate", ("generate", str(model), "What is metformin?", "--max-tokens", "4", "--threads", "1")),
        Step("chat", ("chat", str(model), "--max-tokens", "4", "--threads", "1"), "What is metformin?\n/quit\n"),
        Step(
            "bench",
            (
                "bench",
                "run",
                str(model),
                "--data",
                str(questions),
                "--limit",
                "4",
                "--no-speed",
                "--threads",
                "1",
                "-o",
                str(folder / "run.jsonl"),
            ),
        ),
        Step("fit", ("fit", str(model), "--memory", "16GB")),
        Step("models", ("models", "--json")),
    ]
    return steps + (onnx_steps(checkpoint, questions, folder) if has_onnx() else [])


def has_onnx() -> bool:
    """Whether the extra `onnx` is installed; without it ONNX Runtime cannot send anything either."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def onnx_steps(checkpoint: Path, questions: Path, folder: Path) -> list[Step]:
    """The same with ONNX Runtime, whose builds report home unless they are told not to."""
    model = folder / "onnx"
    return [
        Step("quantize (ONNX)", ("quantize", str(checkpoint), "--format", "onnx", "--out", str(model))),
        Step("verify (ONNX)", ("verify", str(model))),
        Step("generate (ONNX)", ("generate", str(model), "What is metformin?", "--max-tokens", "4", "--threads", "1")),
        Step("chat (ONNX)", ("chat", str(model), "--max-tokens", "4", "--threads", "1"), "What is metformin?\n/quit\n"),
        Step(
            "bench (ONNX)",
            (
                "bench",
                "run",
                str(model),
                "--data",
                str(questions),
                "--limit",
                "4",
                "--no-speed",
                "--threads",
                "1",
                "-o",
                str(folder / "onnx-run.jsonl"),
            ),
        ),
    ]


def run_step(step: Step, environment: dict[str, str] | None = None) -> Outcome:
    """Run a step in a process of its own with the internet forbidden."""
    inherited = {name: value for name, value in os.environ.items() if name not in TELEMETRY_VARIABLES}
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-c", GUARDED, *step.arguments],
            input=step.stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=STEP_SECONDS,
            check=False,
            env={**inherited, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(environment or {})},
        )
    except subprocess.TimeoutExpired:
        return Outcome(step, False, False, (), f"not done after {STEP_SECONDS} s")
    first, _, rest = answer.stderr.partition("\n")
    guards = tuple(first.removeprefix("guards: ").split()) if first.startswith("guards: ") else ()
    killed = answer.returncode == -signal.SIGSYS
    attempted = killed or answer.returncode == ATTEMPT_EXIT_CODE or ATTEMPT_MARK in answer.stderr
    if killed:
        rest += f"{ATTEMPT_MARK} by native code"
    said = "\n".join(rest.strip().splitlines()[-STDERR_LINES_SHOWN:])
    ok = answer.returncode == 0 and not attempted and bool(guards)
    return Outcome(step, ok, attempted, guards, "" if ok else said)


def prove(on_step: Callable[[Outcome], None]) -> list[Outcome]:
    """Run the whole proof on the embedded model; on_step hears each outcome. Stops at the first that fails."""
    from medlite.demo import checkpoint_path, questions_path

    if not (checkpoint_path() / "config.json").is_file():
        raise ArtifactError(
            f"{checkpoint_path()}: the demonstration checkpoint is missing", hint="install medlite again"
        )
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="medlite-proof-") as name:
        for step in proof_steps(checkpoint_path(), questions_path(), Path(name)):
            outcomes.append(run_step(step, {"MEDLITE_CACHE": name}))
            on_step(outcomes[-1])
            if not outcomes[-1].ok:
                break
    return outcomes
