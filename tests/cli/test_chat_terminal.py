"""The program in a real terminal: a pseudo-terminal types, and reads what the screen shows."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


PROMPT = "›".encode()


class Terminal:
    """A program on a pseudo-terminal. Every wait has an end."""

    def __init__(self, *arguments: str, term: str) -> None:
        self.parent, child = os.openpty()
        self.program = subprocess.Popen(
            [sys.executable, "-m", "medlite", *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            env={**os.environ, "TERM": term, "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": "1", "MEDLITE_NO_HISTORY": "1"},
        )
        os.close(child)
        self.unread = b""

    def wait_for(self, text: bytes) -> bytes:
        """What is shown up to and including `text`; with b"", up to the program's end."""
        seen, self.unread = self.unread, b""
        while not text or text not in seen:
            if not select.select([self.parent], [], [], 30)[0]:
                raise AssertionError(f"{text!r} did not come within 30 s after {seen!r}")
            try:
                piece = os.read(self.parent, 4096)
            except OSError:  # Linux reports the closed other side as EIO
                piece = b""
            if not piece:
                break
            seen += piece
        end = seen.find(text) + len(text) if text else len(seen)
        self.unread = seen[end:]
        return seen[:end]

    def type(self, keys: bytes) -> None:
        os.write(self.parent, keys)

    def close(self) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self.parent)


def test_no_color_is_minded_by_errors_too() -> None:
    terminal = Terminal("generate", "nosuchmodel", "hi", term="xterm-256color")
    try:
        said = terminal.wait_for(b"")
        assert b"error: nosuchmodel" in said
        assert b"\x1b[3" not in said
    finally:
        terminal.close()


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_the_program_runs_in_a_real_terminal_and_ctrl_d_leaves(tiny: Path, term: str) -> None:
    terminal = Terminal("chat", str(tiny), "--threads", "1", "--max-tokens", "4", term=term)
    try:
        assert b"Not a medical device" in terminal.wait_for(PROMPT)
        terminal.type(b"the patient\r")
        terminal.wait_for(b"cut after --max-tokens 4")
        terminal.wait_for(PROMPT)  # a Ctrl-D typed before the prompt stands is lost in the terminal's own line mode
        terminal.type(b"\x04")
        terminal.wait_for(b"")
        assert terminal.program.wait(30) == 0
    finally:
        terminal.close()
