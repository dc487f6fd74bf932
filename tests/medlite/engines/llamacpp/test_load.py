"""A file that crashes llama.cpp costs a child process and not the caller."""

import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from medlite.engines import open_engine
from medlite.engines.engine import OpenSettings
from medlite.engines.llamacpp import guard as llama_guard
from medlite.errors import EngineError
from tests.helpers.tiny_gguf import write_tiny_gguf

Crash = tuple[str, object]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path / "cache"))


def crashing(folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, value: object) -> Path:
    """A file whose header is sound and which llama.cpp answers by ending the process."""
    original = getattr(gguf.GGUFWriter, method)
    with monkeypatch.context() as patched:
        patched.setattr(
            gguf.GGUFWriter,
            method,
            lambda self, given: original(self, [value] * len(given) if isinstance(given, list) else value),
        )
        return write_tiny_gguf(folder / f"{method}.gguf")


@pytest.mark.parametrize(
    ("method", "value", "reason"),
    [
        ("add_token_list", "same", r"SIGABRT, llama-vocab\.cpp:\d+: GGML_ASSERT"),  # one token, many times
        ("add_block_count", 5000, r"SIGABRT, llama-model\.cpp:\d+: GGML_ASSERT"),
    ],
)
def test_a_file_that_crashes_llama_cpp_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, value: object, reason: str
) -> None:
    path = crashing(tmp_path, monkeypatch, method, value)
    with pytest.raises(EngineError, match=reason):
        open_engine(path, OpenSettings(device="cpu", n_threads=1))
    assert not llama_guard.is_remembered(path)


def test_a_killed_child_is_an_error_and_a_child_that_cannot_start_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(llama_guard, "CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(EngineError, match=r"crashes on it \(SIGSEGV\)"):
        llama_guard.check_load(path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    llama_guard.check_load(path)


def test_a_file_that_loaded_well_is_tried_again_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    open_engine(path, OpenSettings(device="cpu", n_threads=1)).close()
    assert llama_guard.is_remembered(path)
    monkeypatch.setattr(llama_guard, "CHILD", "import os; os.abort()")
    open_engine(path, OpenSettings(device="cpu", n_threads=1)).close()
    os.utime(path, ns=(0, 0))
    with pytest.raises(EngineError, match="SIGABRT"):
        open_engine(path, OpenSettings(device="cpu", n_threads=1))
    llama_guard.LOADED.path.write_text("{damaged")
    assert not llama_guard.is_remembered(path)
    llama_guard.remember(path)
    assert llama_guard.is_remembered(path)


def test_the_last_words_of_llama_cpp_name_the_work(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    code = (
        "from pathlib import Path\nfrom medlite import native\nfrom medlite.engines import open_engine\n"
        "from medlite.engines.engine import OpenSettings\n"
        f"open_engine(Path({str(path)!r}), OpenSettings('cpu', n_threads=1))\n"
        f"native.library()._lib.ggml_abort(b'/far/away/ops.cpp', 12, b'fatal %s', b'error')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert "medlite: llama.cpp gave up while computing with tiny.gguf: ops.cpp:12: fatal error" in done.stderr
