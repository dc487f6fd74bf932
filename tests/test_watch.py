"""The line that `make demo` shows while llama.cpp compiles, and what is left when that fails."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.places import ROOT

LINES = "Collecting numpy\n  [3/214] Building CXX object a.o\n"


def watch(log: Path, code: int) -> subprocess.CompletedProcess[str]:
    child = f"import sys, time; print({LINES!r}, flush=True); time.sleep(1.5); sys.exit({code})"
    return subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "watch.py"), str(log), sys.executable, "-c", child],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("code", [0, 3])
def test_the_wait_is_reported_and_the_exit_code_is_the_commands(code: int, tmp_path: Path) -> None:
    done = watch(tmp_path / "log", code)
    assert done.returncode == code
    assert "compiling, step 3 of 214" in done.stdout
    assert (tmp_path / "log").read_text(encoding="utf-8").startswith(LINES)
    assert ("[3/214] Building" in done.stderr) == (code != 0)
