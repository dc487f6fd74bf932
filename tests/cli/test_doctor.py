"""The doctor: what it finds here, and what it says of machines that are not here."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from medlite.cli import doctor
from medlite.cli.doctor import GOOD, NOTE, WRONG, Finding, Probe, engine_finding, findings, gpu_findings, run_probe
from medlite.devices import Gpu
from medlite.engines import ENGINES


@pytest.fixture(scope="module")
def found() -> dict[str, Finding]:
    return {finding.name: finding for finding in findings()}


def test_the_engine_loads_here_and_nothing_is_wrong(found: dict[str, Finding]) -> None:
    assert "llama-cpp-python" in found["llamacpp"].text
    assert not [finding for finding in found.values() if finding.level == WRONG]
    assert {"processor", "cores", "memory", "disk", "hub cache", "GPU", "kernels", "network", "versions"} <= set(found)


def test_every_engine_is_probed() -> None:
    assert set(doctor.PROBES) == set(ENGINES)


def test_a_build_for_another_processor_is_caught_and_named() -> None:
    probe = run_probe("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert "SIGILL (illegal instruction: built for another processor)" in probe.failure
    finding = engine_finding("llamacpp", probe)
    assert finding.level == WRONG
    assert "--no-binary llama-cpp-python" in finding.fix


def test_what_is_missing_comes_with_the_command_that_brings_it() -> None:
    missing = run_probe("import no_such_module")
    assert missing.missing
    assert engine_finding("torch", missing) == Finding(NOTE, "torch", "not installed", "pip install 'medlite[torch]'")
    assert engine_finding("llamacpp", missing).level == WRONG
    assert engine_finding("ort", run_probe("raise OSError('libfoo.so')")).text == "OSError: libfoo.so"


def test_an_idle_gpu_is_said_loudly_with_the_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA RTX 4090", 24 << 30, 20 << 30, "560.35", (12, 6))
    monkeypatch.setattr("medlite.devices.find_gpus", lambda: (gpu,))
    seen, idle = gpu_findings(Probe(version="llama-cpp-python 0.3.36", gpu=False))
    assert seen.level == GOOD
    assert "driver 560.35, CUDA 12.6" in seen.text
    assert idle.level == WRONG
    assert idle.fix.endswith("/whl/cu125")
    assert len(list(gpu_findings(Probe(version="llama-cpp-python 0.3.36", gpu=True)))) == 1


def test_brackets_of_an_extra_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "findings", lambda: iter([Finding(NOTE, "torch", "a [b] c", "pip install 'm[torch]'")]))
    answer = CliRunner().invoke(doctor.command)
    assert "a [b] c" in answer.output
    assert "pip install 'm[torch]'" in answer.output


def test_json_holds_every_finding_and_the_exit_code_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "findings", lambda: iter([Finding(WRONG, "GPU unused", "idle", "pip install x")]))
    answer = CliRunner().invoke(doctor.command, ["--json"])
    assert answer.exit_code == 1
    assert json.loads(answer.stdout) == [
        {"level": "wrong", "name": "GPU unused", "text": "idle", "fix": "pip install x"}
    ]


def test_the_doctor_answers_where_llama_cpp_is_broken() -> None:
    code = (
        "import sys; sys.modules['llama_cpp'] = None; sys.argv = ['medlite', 'doctor', '--json']; "
        "from medlite.cli import main; main()"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert json.loads(answer.stdout)
    assert "Traceback" not in answer.stderr
