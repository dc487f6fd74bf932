"""An ONNX conversion's memory stays bounded whatever the model's size: a 70B-shaped checkpoint, sparse on disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.places import ROOT
from tests.whole.test_memory import LIMIT_BYTES, make_sparse

pytest.importorskip("onnx", reason="needs the extra [onnx]")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")

CONVERT = """
import sys
from pathlib import Path
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.onnx.plan import plan_onnx
from quantize.onnx.recipes import ONNX_RECIPES
from quantize.stream.writer import WriteSettings
from quantize.stream.writer import write
folder, target = Path(sys.argv[1]), sys.argv[2]
plan = plan_onnx(match_checkpoint(open_checkpoint(folder)), ONNX_RECIPES["q4m"], block=128)
n_bytes = plan.n_bytes
if target:
    write([plan.output(Path(target))], WriteSettings(n_threads=2, hash_source=False))
status = Path("/proc/self/status").read_text()
print(n_bytes, next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def run(folder: Path, target: str) -> tuple[int, int]:
    """(planned bytes, peak resident bytes) of a fresh process that plans, and converts where target is given."""
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(folder), target],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    planned, peak_kib = done.stdout.split()
    return int(planned), int(peak_kib) * 1024


def test_a_70b_is_planned_in_bounded_memory(tmp_path: Path) -> None:
    """From headers alone, its graph included: 4.16 bits for most weights, 8.13 for the sensitive ones."""
    planned, peak = run(make_sparse(tmp_path / "m", 80), "")
    assert 40e9 < planned < 52e9
    assert peak < LIMIT_BYTES


@pytest.mark.slow
def test_the_first_layers_of_a_70b_are_converted_in_bounded_memory(tmp_path: Path) -> None:
    planned, peak = run(make_sparse(tmp_path / "m", 2), str(tmp_path / "out"))
    assert planned == sum((tmp_path / "out" / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert peak < LIMIT_BYTES
