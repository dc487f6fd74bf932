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
    """The commands, in order: each kind of work once, on a checkpoint and question file small enough for a moment.

    With ONNX Runtime where it is installed, whose builds report home unless they are told not to.
    """
    model, onnx = folder / f"{checkpoint.resolve().name}-{RECIPE}.gguf", folder / "onnx"
    to_gguf = ("quantize", str(checkpoint), "--recipe", RECIPE, "--out", str(folder), "--threads", "1")
    steps = [
        Step("quantize", to_gguf),
        Step("verify", ("verify", str(model), "--against", str(checkpoint))),
        *model_steps(model, questions, folder / "run.jsonl"),
        Step("fit", ("fit", str(model), "--memory", "16GB")),
        Step("models", ("models", "--json")),
    ]
    if has_onnx():
        steps += [
            Step("quantize (ONNX)", ("quantize", str(checkpoint), "--format", "onnx", "--out", str(onnx))),
            Step("verify (ONNX)", ("verify", str(onnx))),
            *model_steps(onnx, questions, folder / "onnx-run.jsonl", " (ONNX)"),
        ]
    return steps


def has_onnx() -> bool:
    """Whether the extra `onnx` is installed; without it ONNX Runtime cannot send anything either."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def model_steps(model: Path, questions: Path, record: Path, kind: str = "") -> list[Step]:
    """What is done with a model of either format. kind: behind the names."""
    short, one = ("--max-tokens", "4"), ("--threads", "1")
    asked = ("--data", str(questions), "--limit", "4", "--no-speed")
    return [
        Step(f"generate{kind}", ("generate", str(model), "What is metformin?", *short, *one)),
        Step(f"chat{kind}", ("chat", str(model), *short, *one), "What is metformin?\n/quit\n"),
        Step(f"bench{kind}", ("bench", "run", str(model), *asked, *one, "-o", str(record))),
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
