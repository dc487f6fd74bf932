"""The programs start from a clone, are listed, and read what a process costs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.places import ROOT
from tests.measure.sampler import run

HERE = Path(__file__).parent
PROGRAMS = sorted({path.stem for path in HERE.glob("*.py")} - {"__init__", "sampler", Path(__file__).stem})


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_explains_itself(name: str) -> None:
    """Its imports are found too: what it measures moves, and no other test imports it."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.measure.{name}", "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_every_program_is_listed_once() -> None:
    text = (HERE / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)`", text, re.MULTILINE)) == PROGRAMS


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="reads /proc")
def test_memory_time_and_bytes_of_a_process_are_seen(tmp_path: Path) -> None:
    ours = b"1" * 300_000_000  # no part of what the child costs
    code = "import time; held = b'1' * 50_000_000; open('out', 'wb').write(held); time.sleep(0.3)"
    cost = run([sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {code}"])
    assert cost.seconds >= 0.3
    assert cost.n_bytes_written >= 50_000_000
    assert 50_000_000 < cost.peak_anonymous_bytes <= cost.peak_rss_bytes < 200_000_000 < len(ours)
