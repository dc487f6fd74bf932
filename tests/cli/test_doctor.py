"""The doctor: what it finds here, and what it says of machines that are not here."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from medlite.cli.doctor import (
    GOOD,
    NOTE,
    WRONG,
    Finding,
    Machine,
    Probe,
    engine_finding,
    findings,
    gpu_findings,
    machine_findings,
    probe_engine,
    run_probe,
    show,
    this_machine,
)
from medlite.devices import Gpu
from medlite.engines import ENGINES

GPU = Gpu("NVIDIA RTX 4090", 24 << 30, 20 << 30, "560.35", (12, 6))
MACHINE = Machine(
    architecture="x86_64",
    cpu_name="Some processor",
    features=frozenset({"avx2", "fma", "f16c"}),
    n_physical_cores=8,
    n_logical_cores=16,
    n_bytes_free=12 * 10**9,
    n_bytes_total=16 * 10**9,
    gpus=(),
)


@pytest.fixture(scope="module")
def found() -> dict[str, Finding]:
    """What is said of a machine without a GPU, on which what is installed here runs."""
    return {finding.name: finding for finding in findings(MACHINE)}


def test_the_engine_loads_here_and_nothing_is_wrong(found: dict[str, Finding]) -> None:
    assert "llama-cpp-python" in found["llamacpp"].text
    assert not [finding for finding in found.values() if finding.level == WRONG]
    assert {"processor", "cores", "memory", "disk", "hub cache", "GPU", "kernels", "network", "versions"} <= set(found)


def test_the_machine_is_described(found: dict[str, Finding]) -> None:
    assert found["processor"] == Finding(GOOD, "processor", "Some processor: AVX2, FMA, F16C")
    assert found["cores"].text == "8 physical, 16 logical"
    assert found["memory"].text == "12 GB available of 16 GB"
    assert found["GPU"].level == NOTE
    old = {one.name: one for one in machine_findings(replace(MACHINE, features=frozenset({"sse2"})))}
    assert old["processor"].level == NOTE
    assert "without AVX2 decoding is slow" in old["processor"].text
    assert this_machine().n_bytes_total > 0


def test_every_engine_is_probed() -> None:
    for name, row in ENGINES.items():
        probe = probe_engine(name)
        assert probe.version or probe.missing, probe.failure
        assert probe.version or row.extra


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


def test_an_idle_gpu_is_said_loudly_with_the_one_command() -> None:
    seen, idle = gpu_findings((GPU,), Probe(version="llama-cpp-python 0.3.36", gpu=False))
    assert seen.level == GOOD
    assert "driver 560.35, CUDA 12.6" in seen.text
    assert idle.level == WRONG
    assert idle.fix.endswith("/whl/cu125")
    assert len(list(gpu_findings((GPU,), Probe(version="llama-cpp-python 0.3.36", gpu=True)))) == 1


def test_brackets_of_an_extra_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    show([Finding(NOTE, "torch", "a [b] c", "pip install 'm[torch]'")], as_json=False)
    printed = capsys.readouterr().out
    assert "a [b] c" in printed
    assert "pip install 'm[torch]'" in printed


def test_json_holds_every_finding_and_the_exit_code_tells(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        show([Finding(WRONG, "GPU unused", "idle", "pip install x")], as_json=True)
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out) == [
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
