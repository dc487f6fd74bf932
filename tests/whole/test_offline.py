"""Nothing leaves the machine: the runtime works with every socket forbidden, and fails on any attempt."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medlite.cli.offline_proof import Step, proof_steps, run_step
from medlite.offline import ATTEMPT_EXIT_CODE
from tests.helpers.tiny_checkpoint import make_llama
from tests.helpers.tiny_gguf import write_tiny_gguf

# An audit hook sees every socket of the process, C code of the standard library included, and cannot be removed.
GUARD = """
import sys
def guard(event, arguments):
    if event.startswith("socket."):
        sys.stderr.write(f"SOCKET {event} {arguments}\\n")
        raise RuntimeError("no network")
sys.addaudithook(guard)
sys.argv = ["medlite", *sys.argv[1:]]
from medlite.cli import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["--help"], ""),
        (["generate", "{model}", "what class of drug", "--max-tokens", "3", "--threads", "1"], ""),
        (["chat", "{model}", "--max-tokens", "3", "--threads", "1"], "the patient\n/stats\n/quit\n"),
        (["chat", "{model}", "--json", "--max-tokens", "3", "--threads", "1"], "the patient\n"),
    ],
)
def test_no_socket_is_opened(tmp_path: Path, arguments: list[str], stdin: str) -> None:
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    answer = subprocess.run(
        [sys.executable, "-c", GUARD, *(a.format(model=model) for a in arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SOCKET" not in answer.stderr
    assert answer.returncode == 0, answer.stderr


def test_the_guard_sees_a_socket() -> None:
    code = GUARD.split("sys.argv")[0] + "import socket; socket.socket()"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "SOCKET socket.__new__" in answer.stderr


# --- with the kernel's help: native code and child processes too -----------------------------------------------------


def test_every_kind_of_work_is_done_with_the_internet_forbidden(tmp_path: Path) -> None:
    checkpoint = make_llama(tmp_path / "tiny", max_position_embeddings=2048)
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        "".join(
            json.dumps(
                {
                    "id": f"q{i}",
                    "question": f"Number {i}?",
                    "answer": "A",
                    "options": {"A": "one", "B": "two", "C": "three", "D": "four"},
                }
            )
            + "\n"
            for i in range(4)
        )
    )
    steps = proof_steps(checkpoint, questions, tmp_path)
    kinds = ("quantize", "verify", "generate", "chat", "bench")
    assert {*kinds, *(f"{kind} (ONNX)" for kind in kinds), "fit"} <= {step.name for step in steps}
    for step in steps:
        outcome = run_step(step, {"MEDLITE_CACHE": str(tmp_path / "cache")})
        assert not outcome.attempted, (step, outcome.said)
        assert outcome.ok, (step, outcome.said)
        if sys.platform == "linux":
            assert outcome.guards == ("python", "system")


def test_a_download_is_an_attempt_that_the_proof_sees(tmp_path: Path) -> None:
    outcome = run_step(Step("pull", ("pull", "org/model")), {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"})
    assert outcome.attempted
    assert not outcome.ok


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("import socket; socket.socket()", True),
        ("import socket; socket.getaddrinfo('example.org', 443)", True),
        ("import urllib.request; urllib.request.urlopen('http://192.0.2.1/')", True),
        ("import socket; socket.socketpair()", False),
    ],
)
def test_an_attempt_ends_the_process_even_where_exceptions_are_swallowed(code: str, seen: bool) -> None:
    guarded = (
        f"from medlite.offline import forbid_internet; forbid_internet()\ntry:\n {code}\nexcept BaseException: pass"
    )
    answer = subprocess.run([sys.executable, "-c", guarded], capture_output=True, text=True, check=False)
    assert answer.returncode == (ATTEMPT_EXIT_CODE if seen else 0), answer.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's guard is Linux's")
def test_native_code_and_children_are_ended_by_the_kernel() -> None:
    guarded = "from medlite.offline import forbid_internet; assert 'system' in forbid_internet(); "
    for family in (2, 10):
        code = f"import ctypes; ctypes.CDLL(None).socket({family}, 1, 0)"
        answer = subprocess.run([sys.executable, "-c", guarded + code], capture_output=True, check=False)
        assert answer.returncode == -31  # SIGSYS
    child = (
        "import subprocess, sys; "
        "sys.exit(-subprocess.run([sys.executable, '-c', 'import socket; socket.socket()']).returncode)"
    )
    assert subprocess.run([sys.executable, "-c", guarded + child], capture_output=True, check=False).returncode == 31


def test_telemetry_is_off_before_anything_can_import_a_dependency() -> None:
    code = """
import os, sys
names = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
for name in names:
    os.environ.pop(name, None)
import medlite.cli
assert not {"onnxruntime", "huggingface_hub"} & set(sys.modules)
print(*(os.environ[name] for name in names))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["1", "1", "1"]
