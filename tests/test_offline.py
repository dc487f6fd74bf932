"""Nothing leaves the machine: the runtime works with every socket forbidden, and fails on any attempt."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_gguf

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


@pytest.mark.parametrize(("arguments", "stdin"), [
    (["--help"], ""),
    (["generate", "{model}", "what class of drug", "--max-tokens", "3", "--threads", "1"], ""),
    (["chat", "{model}", "--max-tokens", "3", "--threads", "1"], "the patient\n/stats\n/quit\n"),
    (["chat", "{model}", "--json", "--max-tokens", "3", "--threads", "1"], "the patient\n"),
])
def test_no_socket_is_opened(tmp_path: Path, arguments: list[str], stdin: str) -> None:
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    answer = subprocess.run([sys.executable, "-c", GUARD, *(a.format(model=model) for a in arguments)],
                            input=stdin, capture_output=True, text=True, check=False)
    assert "SOCKET" not in answer.stderr
    assert answer.returncode == 0, answer.stderr


def test_the_guard_sees_a_socket() -> None:
    code = GUARD.split("sys.argv")[0] + "import socket; socket.socket()"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "SOCKET socket.__new__" in answer.stderr
