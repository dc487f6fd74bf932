"""A checkpoint as Optimum exports it, in this environment or another: for architectures that have no graph of ours.

Optimum's ONNX exporter needs transformers below 4.58, which newer programs cannot share an environment with; so it runs
in a process of the Python that has it. quantize.onnx.rewrite then makes the export's weights low-bit.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medlite.errors import CheckpointError, MissingExtraError
from medlite.formats.json import read_json
from quantize.onnx import optimum_worker

# What the extra [optimum] pins too: releases that resolve together (optimum-onnx 0.1.0 wants optimum 2.1 and
# transformers below 4.58, every transformers 4 wants huggingface-hub below 1.0).
# fmt: off
REQUIREMENTS = ("torch==2.13.0", "optimum-onnx==0.1.0", "optimum==2.1.0", "transformers==4.57.6",
                "huggingface-hub==0.36.2", "onnx>=1.18", "onnxruntime>=1.31")
# fmt: on
INSTALL_HINT = (
    f"python3 -m venv optimum-env && optimum-env/bin/pip install {shlex.join(REQUIREMENTS)}, then "
    "--exporter-python optimum-env/bin/python; or, into this environment: pip install 'medlite[optimum]'"
)


@dataclass(frozen=True)
class Export:
    """A float32 graph in `folder`, with the tokenizer's files. versions: package -> version of what made it."""

    folder: Path
    versions: Mapping[str, str]


@contextmanager
def exported(source: Path, beside: Path, python: Path | None = None) -> Iterator[Export]:
    """The export of the checkpoint folder `source`, in a folder of its own under `beside`, removed afterwards.

    python: the interpreter that has Optimum, None for this one. Takes as much disk as the weights in float32, and
    memory for them. Raises MissingExtraError where Optimum is not there, CheckpointError with Optimum's own reason.
    """
    if python is None and not has_optimum():
        error = MissingExtraError("optimum", "optimum")
        error.hint = INSTALL_HINT
        raise error
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside.resolve(), prefix=".optimum-") as name:
        folder = Path(name)
        _run_worker(source.resolve(), folder, python)
        yield Export(folder, read_json(folder / "versions.json", dict[str, str], CheckpointError))


def has_optimum() -> bool:
    """Whether this interpreter has Optimum's ONNX exporter."""
    return all(importlib.util.find_spec(name) for name in ("optimum", "optimum.exporters.onnx"))


def _run_worker(source: Path, folder: Path, python: Path | None) -> None:
    """Run the worker on standard input, so that no module of ours is in its search path."""
    environment = {key: value for key, value in os.environ.items() if python is None or not key.startswith("PYTHON")}
    environment |= optimum_worker.OFFLINE
    script = Path(optimum_worker.__file__).read_bytes()
    try:
        # Not resolved: the path of a virtual environment's python is what makes it one.
        done = subprocess.run(
            [os.path.abspath(python) if python else sys.executable, "-", str(source), str(folder)],
            input=script,
            cwd=folder,
            env=environment,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise CheckpointError(
            f"--exporter-python {python}: {error.strerror}",
            hint="it names the python program of an environment that has Optimum",
        ) from error
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        hint = "the model type may be unknown to Optimum 2.1, or the memory too small: it takes about five times the "
        hint += "checkpoint's size"
        if "ModuleNotFoundError" in reason or "ImportError" in reason:
            hint = INSTALL_HINT
        raise CheckpointError(f"{source}: Optimum did not export it: {reason}", hint)
