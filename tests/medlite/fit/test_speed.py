"""Reading speeds: every type can be timed, and what was measured is remembered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medlite.errors import EngineError
from medlite.fit import speed
from medlite.formats.gguf import GGML_TYPES
from medlite.native import SPIN_COUNT
from tests.helpers.places import ROOT


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path / "cache"))


def test_a_reading_speed_is_measured_once_and_remembered() -> None:
    first = speed.bytes_per_second(["Q4_K"], 1, budget_seconds=60)
    assert set(first) == {"memory", "Q4_K"}
    assert 1e7 < first["Q4_K"] <= first["memory"] < 1e13
    assert speed.together(1.0, 1e6) == pytest.approx(1)
    assert speed.together(1.0, 1.0) == pytest.approx(0.84, abs=0.01)
    assert speed.bytes_per_second(["Q4_K"], 1, budget_seconds=0) == first
    speed.SPEEDS.path.write_text("{")
    assert speed.bytes_per_second(["Q4_K", "Q8_0"], 1, budget_seconds=-1) == {}


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q2_K", "IQ4_NL", "IQ2_XS", "TQ1_0"])
def test_every_kind_of_type_can_be_timed(name: str) -> None:
    assert speed.measure_bytes_per_second(GGML_TYPES[name], 1, n_bytes=1 << 20, n_rounds=1) > 0


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0"])
def test_attention_over_every_kind_of_cache_can_be_timed(name: str) -> None:
    assert speed.measure_attention(GGML_TYPES[name], 64, 1, n_rounds=1) > 0
    assert speed.bytes_per_second([speed.attention_key(name, 64)], 1, budget_seconds=60)


def test_the_buffer_that_repacks_is_found_in_the_pinned_runtime() -> None:
    """Were it renamed, types that are repacked would be timed in their plain layout, which is slower."""
    assert speed.repacking_buffer_type()
    assert speed.repacking_buffer_type(b"CPU_GONE") is None


def test_a_measurement_is_quiet_and_its_threads_spin_as_an_engines() -> None:
    """ggml logs each matrix that it repacks, and libgomp reads the spin count when it is loaded."""
    code = (
        "import os; from medlite.fit.speed import GGML_TYPES, measure_bytes_per_second; "
        "measure_bytes_per_second(GGML_TYPES['Q4_K'], 1, 1 << 20, 1); print(os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {name: text for name, text in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    assert answer.stdout == f"{SPIN_COUNT}\n"
    assert answer.stderr == ""


def test_a_runtime_without_a_function_is_an_error_that_fit_survives() -> None:
    with pytest.raises(EngineError, match="libggml-base has no ggml_init"):
        speed.declared(lambda name: object())
