"""The comparison of a prediction with a loaded model, and what is kept of it."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from medlite.errors import EngineError
from medlite.fit.check import N_STEPS, CheckSettings, measure, past_error, read_history, remember
from tests.helpers.places import ROOT
from tests.helpers.tiny_gguf import write_tiny_gguf


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path / "cache"))


def test_memory_of_a_loaded_model_is_predicted_and_the_error_kept(tmp_path: Path) -> None:
    model, steps = write_tiny_gguf(tmp_path / "m.gguf"), []
    # A process that imports this file's tools holds them too, so the child is what a user's process is.
    measured = measure(model, CheckSettings(1, 512, n_tokens=2), steps.append)
    assert steps == [1] * N_STEPS
    # So small a model is all runtime, whose own memory differs by some 20 MB between installations.
    assert measured.predicted_peak_bytes == pytest.approx(measured.measured_peak_bytes, abs=25e6)
    assert measured.measured_tokens_per_second > 0
    assert read_history() == [measured]
    again = replace(measured, measured_peak_bytes=1)
    remember(again)
    assert read_history() == [again]
    assert "past error here, 1 file: memory -100 to -100 %" in past_error(read_history(), 1)
    remember(replace(measured, n_threads=2))
    assert "1 file: memory -100 to -100 %" in past_error(read_history(), 1)
    assert "2 files: memory -100 to" in past_error(read_history(), 16)


def test_a_machine_without_a_comparison_is_told_how_to_make_one() -> None:
    assert read_history() == []
    assert "medlite fit FILE --check" in past_error([], 1)


def test_what_ends_the_child_is_the_error(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf")
    with pytest.raises(EngineError, match=r"m\.gguf: unknown KV cache type"):
        measure(model, CheckSettings(1, 512, kv_type="q4_0x", n_tokens=2))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_ctrl_c_ends_the_child_too(tmp_path: Path) -> None:
    """The signal goes to the parent alone, as from `kill`; a terminal's reaches both."""
    model = write_tiny_gguf(tmp_path / "m.gguf", n_context=1 << 15)
    command = [sys.executable, "-m", "medlite", "fit", str(model), "--check", "--context", "32768"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as parent:
        child = running_child(parent)
        parent.send_signal(signal.SIGINT)
        _, said = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert said.endswith("interrupted\n")
    assert not Path(f"/proc/{child}").exists()


def running_child(parent: "subprocess.Popen[str]") -> int:
    """The child of `parent`, once it has loaded llama.cpp."""
    while parent.poll() is None:
        for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split():
            if "libllama" in Path(f"/proc/{pid}/maps").read_text():
                return int(pid)
        time.sleep(0.02)
    raise AssertionError(parent.communicate()[1])
