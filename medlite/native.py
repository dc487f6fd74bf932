"""llama.cpp and ggml as shared libraries: where llama-cpp-python keeps them, loaded once, and what they say.

Their errors are kept to explain a failure instead of being printed. llama-cpp-python is pinned in pyproject.toml, since
its ctypes layer mirrors C structs that change between versions.
"""

import ctypes
import importlib.util
import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from medlite.errors import ArtifactError, EngineError

PACKAGE = "llama-cpp-python"
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
N_LOG_LINES = 40
LOG_INFO, LOG_ERROR = 2, 4  # ggml.h, enum ggml_log_level

# libgomp's threads spin for about 10 ms at a barrier before they sleep, and a token passes hundreds of barriers. Next
# to other programs a spinning thread keeps the core from the one it waits for: on 2 busy cores a 1B model decoded 0.5
# to 1.2 tokens/s. With a short spin it decodes 10 to 15 there. Read once, when libgomp is loaded (libgomp manual,
# GOMP_SPINCOUNT); a user's own OMP_WAIT_POLICY or GOMP_SPINCOUNT wins.
SPIN_COUNT = "1000"

# "llama_kv_cache:        CPU KV buffer size =    32.00 MiB"
BUFFER_LINE = re.compile(r":\s*(\S+)\s+(model|KV|RS|output|compute) buffer size =\s*([\d.]+) MiB")

_errors: deque[str] = deque(maxlen=N_LOG_LINES)
_buffers: dict[str, int] = {}
_work = ["starting"]
_callbacks: list[Any] = []  # the native side holds only pointers


# --- where they are --------------------------------------------------------------------------------------------------


@cache
def requirement() -> str:
    """llama-cpp-python, with its version, as the metadata of medlite pins it: "llama-cpp-python==...".

    Raises EngineError where medlite is run from its source without having been installed.
    """
    try:
        stated = metadata.requires("medlite") or []
    except metadata.PackageNotFoundError as error:
        raise EngineError("medlite is not installed, only its source is here", hint="pip install -e .") from error
    (pin,) = (row for row in stated if row.startswith(f"{PACKAGE}=="))
    return pin


def runtime_version() -> str:
    """The pinned runtime, for records and banners: "llama-cpp-python ..."."""
    return requirement().replace("==", " ")


def library_files(name: str) -> list[Path]:
    """The files of one library ("ggml-base"), the plain name first. llama_cpp itself is not imported.

    A wheel holds a library as up to three files of different names and no links (libllama.so, libllama.so.0, ...).
    Raises EngineError if llama-cpp-python is not installed, or without this library.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise EngineError(f"{PACKAGE} is not installed", hint=f"pip install {requirement()}")
    folder = Path(spec.origin).parent / "lib"
    files = sorted(folder.glob(f"lib{name}.*"))
    if not any(path.suffix == SUFFIX for path in files):
        raise EngineError(
            f"{folder}: {PACKAGE}'s lib{name}{SUFFIX} was not found",
            hint=f"pip install --force-reinstall {requirement()}",
        )
    return files


def library_path(name: str) -> Path:
    """The file of one library: "ggml-base", "ggml-cpu" or "llama". Raises EngineError as `library_files`."""
    return next(path for path in library_files(name) if path.suffix == SUFFIX)


@cache
def load_ggml(name: str) -> ctypes.CDLL:
    """The library "ggml-base" or "ggml-cpu" alone, without the rest of the runtime."""
    return ctypes.CDLL(str(library_path(name)))


@cache
def library() -> Any:
    """The ctypes layer of llama-cpp-python, loaded once, its log kept by this module.

    Raises EngineError if it is not installed, does not load, or has another version than the pinned one.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    try:
        import llama_cpp
        import llama_cpp.llama_cpp as native
    except ImportError as error:
        raise EngineError(f"{PACKAGE} is not installed", hint=f"pip install {requirement()}") from error
    except (OSError, RuntimeError) as error:
        raise EngineError(
            f"{PACKAGE} does not load: {error}", hint=f"pip install --force-reinstall {requirement()}"
        ) from error
    if f"{PACKAGE}=={llama_cpp.__version__}" != requirement():
        raise EngineError(
            f"{PACKAGE} is {llama_cpp.__version__}, medlite needs {requirement()}", hint=f"pip install {requirement()}"
        )
    _install_last_words()
    log = native.llama_log_callback(_keep_log)
    _callbacks.append(log)
    native.llama_log_set(log, ctypes.c_void_p(0))
    native.llama_backend_init()
    return native


def gpu_build() -> bool:
    """Whether this llama-cpp-python can place layers on a GPU."""
    return bool(library().llama_supports_gpu_offload())


@cache
def kernel_features() -> frozenset[str]:
    """The instruction sets, by /proc/cpuinfo's names, that decide which matrices this build of ggml's kernels repacks.

    A wheel for any processor with AVX2 does not use the AVX-512 of this one. Source: ggml-cpu/repack.cpp.
    """
    library()  # first, with its settings of the threads
    kernels = load_ggml("ggml-cpu")
    asked = {
        "avx2": kernels.ggml_cpu_has_avx2,
        "avx512f": kernels.ggml_cpu_has_avx512,
        "asimddp": kernels.ggml_cpu_has_dotprod,
    }
    return frozenset(name for name, has in asked.items() if has())


# --- what they say ---------------------------------------------------------------------------------------------------


def _keep_log(level: int, text: bytes, _user_data: Any) -> None:
    if level == LOG_ERROR:
        _errors.append(text.decode("utf-8", errors="replace").strip())
    elif level == LOG_INFO and b"buffer size" in text:
        found = BUFFER_LINE.search(text.decode("utf-8", errors="replace"))
        if found:
            name = f"{found[1]} {found[2]}"
            _buffers[name] = _buffers.get(name, 0) + int(float(found[3]) * (1 << 20))


def forget_log() -> None:
    """Begin to listen: `failure` and `logged_buffers` report only what is logged from here on."""
    _errors.clear()
    _buffers.clear()


def logged_buffers() -> dict[str, int]:
    """The bytes that llama.cpp allocated since `forget_log`, by its own names ("CPU KV")."""
    return dict(_buffers)


def logged_errors() -> list[str]:
    """What went wrong since `forget_log`, in llama.cpp's words."""
    return [line for line in _errors if line]


def failure(what: str, hint: str) -> EngineError:
    """An EngineError with the native library's own reason: the first error it logged, without its function's name."""
    reasons = [line.split(": ", 1)[-1] for line in logged_errors()]
    _errors.clear()
    return EngineError(f"{what}: {reasons[0]}" if reasons else what, hint=hint)


def working_on(work: str) -> None:
    """Remember what llama.cpp is about to do ("loading FILE"), for its last words should it end the process."""
    _work[0] = work


def _install_last_words() -> None:
    """Take over the message that ggml prints before it ends the process. Where that cannot be done, nothing changes."""
    say = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_say)  # ggml.h, ggml_abort_callback_t
    _callbacks.append(say)
    for path in library_files("ggml-base"):
        try:
            loaded = ctypes.CDLL(str(path), mode=getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_NOW", 0))
        except OSError:
            continue  # of a library's files one is loaded
        if hasattr(loaded, "ggml_set_abort_callback"):
            loaded.ggml_set_abort_callback(say)


def _say(message: bytes) -> None:
    """A library must not print, but here the process ends in the same moment and nobody else can say why."""
    reason = message.rsplit(b"/", 1)[-1].decode("utf-8", "replace")
    os.write(2, f"medlite: llama.cpp gave up while {_work[0]}: {reason}\n".encode())


# --- vocabularies ----------------------------------------------------------------------------------------------------


class Vocabulary:
    """The vocabulary of a loaded model. pointer: llama.cpp's."""

    def __init__(self, model_pointer: Any) -> None:
        self.pointer = library().llama_model_get_vocab(model_pointer)
        self.n_tokens = int(library().llama_vocab_n_tokens(self.pointer))
        # Asked for again and again, and slow to ask for. piece: the bytes of one token; a control token has none.
        # is_end: whether a token ends a turn or a text; a vocabulary may have several.
        self.piece, self.is_end = cache(self._piece), cache(self._is_end)

    def text(self, token: int) -> str:
        """The entry of a token, as a template names it; empty for no token (-1)."""
        return library().llama_vocab_get_text(self.pointer, token).decode("utf-8", "replace") if token >= 0 else ""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. Raises EngineError if llama.cpp cannot tokenize it."""
        native, raw = library(), text.encode("utf-8", errors="replace")
        size = len(raw) + 8
        for _ in range(2):
            buffer = (ctypes.c_int32 * size)()
            n = native.llama_tokenize(self.pointer, raw, len(raw), buffer, size, add_special, parse_special)
            if n >= 0:
                return list(buffer[:n])
            size = -n
        raise EngineError(f"text of {len(raw)} bytes cannot be tokenized")

    def _piece(self, token: int) -> bytes:
        native = library()
        buffer = ctypes.create_string_buffer(64)
        n = native.llama_token_to_piece(self.pointer, token, buffer, 64, 0, False)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = native.llama_token_to_piece(self.pointer, token, buffer, -n, 0, False)
        return buffer.raw[:n]

    def _is_end(self, token: int) -> bool:
        return bool(library().llama_vocab_is_eog(self.pointer, token))


@contextmanager
def open_vocabulary(path: Path) -> Iterator[Vocabulary]:
    """The vocabulary of a GGUF file, without its weights. Raises ArtifactError with llama.cpp's reason."""
    native = library()
    parameters = native.llama_model_default_params()
    parameters.vocab_only = True
    forget_log()
    working_on(f"reading the vocabulary of {path}")
    model = native.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        reasons = "; ".join(logged_errors()[:2]) or "no reason"
        raise ArtifactError(f"{path}: llama.cpp refuses the vocabulary: {reasons}")
    try:
        yield Vocabulary(model)
    finally:
        native.llama_model_free(model)
