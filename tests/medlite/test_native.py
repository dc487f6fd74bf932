"""llama.cpp's libraries: found in one place, of the pinned version, and what is missing is named with what mends it."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from medlite.engines import open_engine
from medlite.engines.engine import OpenSettings
from medlite.errors import ArtifactError, EngineError
from medlite.native import kernel_features, library, library_path, open_vocabulary, requirement, runtime_version
from tests.helpers.places import ROOT
from tests.helpers.tiny_gguf import write_tiny_gguf

SOURCES = [path for package in ("medlite", "quantize", "bench") for path in (ROOT / package).rglob("*.py")]
# Who may call C. A fault there ends the process, so it is few files, each for one library.
CTYPES = {
    "medlite/native.py",
    "medlite/offline.py",
    "medlite/fit/speed.py",
    "medlite/engines/llamacpp/native.py",
    "quantize/stream/ggml.py",
    "quantize/kernels/__init__.py",
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def importers(package: str) -> set[str]:
    """The files of the library that import `package`, anywhere in them."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            if any(name.split(".")[0] == package for name in names):
                found.add(str(path.relative_to(ROOT)))
    return found


def test_the_pin_is_read_from_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert requirement() in project["dependencies"]
    assert runtime_version() == requirement().replace("==", " ")


def test_a_source_that_was_not_installed_says_how_to_install_it() -> None:
    code = (
        "from importlib import metadata\n"
        "def requires(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.requires = requires\n"
        "from medlite.errors import EngineError\n"
        "from medlite.native import requirement\n"
        "try: requirement()\n"
        "except EngineError as error: print(error, error.hint)"
    )
    assert run(code).strip() == "medlite is not installed, only its source is here pip install -e ."


def test_the_libraries_are_found_without_loading_the_runtime() -> None:
    assert library_path("llama").is_file()
    code = "import sys; from medlite.native import load_ggml; load_ggml('ggml-base'); print('llama_cpp' in sys.modules)"
    assert run(code).strip() == "False"


@pytest.mark.parametrize("call", ["library()", "library_path('llama')"])
def test_without_llama_cpp_python_the_hint_installs_the_pinned_one(call: str) -> None:
    code = (
        "import sys; sys.modules['llama_cpp'] = None\nfrom medlite.errors import EngineError\n"
        f"from medlite import native\ntry: native.{call}\nexcept EngineError as error: print(error, '|', error.hint)"
    )
    assert run(code).strip() == f"llama-cpp-python is not installed | pip install {requirement()}"


def test_another_version_is_refused() -> None:
    """Its structs may differ from those that the program passes."""
    code = (
        "import llama_cpp; llama_cpp.__version__ = '0.0.1'\nfrom medlite.errors import EngineError\n"
        "from medlite import native\ntry: native.library()\nexcept EngineError as error: print(error, '|', error.hint)"
    )
    assert run(code).strip() == (
        f"llama-cpp-python is 0.0.1, medlite needs {requirement()} | pip install {requirement()}"
    )


def test_a_check_of_a_vocabulary_leaves_the_engine_its_ears(tmp_path: Path) -> None:
    """Both listen to one log: an engine in the same process still reports why its own model fails."""
    with (
        pytest.raises(ArtifactError, match=r"llama\.cpp refuses the vocabulary"),
        open_vocabulary(tmp_path / "none.gguf"),
    ):
        pass
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
    with pytest.raises(EngineError, match=r"tensor 'blk\.0\.attn_q\.weight' not found"):
        open_engine(path, OpenSettings(device="cpu", n_threads=1))


def test_llama_cpp_is_imported_in_one_place() -> None:
    assert importers("llama_cpp") == {"medlite/native.py"}


def test_few_files_call_c() -> None:
    assert importers("ctypes") == CTYPES


def test_the_kernels_say_what_they_were_compiled_for() -> None:
    """Not what the processor has: a build for AVX2 repacks no Q2_K, and has no buffer for it, on one with AVX-512."""
    shown = library().llama_print_system_info().decode()
    names = {"avx2": "AVX2", "avx512f": "AVX512", "asimddp": "DOTPROD"}
    assert kernel_features() == {name for name, words in names.items() if f" {words} = 1 " in shown}
