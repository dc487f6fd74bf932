"""A file is first loaded in a process of its own, so that one which crashes llama.cpp cannot take the caller along.

llama.cpp checks much of a file by ending the process (a vocabulary that holds a token twice, 5,000 layers). The child
reads the header and the vocabulary, checks every tensor's shape and plans the computation, but allocates no weights; it
needs no package but ctypes. That takes what reading the vocabulary takes, so a file that was loaded before is
remembered by its size and time, and not tried again. What only the weights or a GPU can bring about is not tried.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from medlite.engines.engine import OnLoad
from medlite.engines.llamacpp.native import Model
from medlite.errors import EngineError, OutputError
from medlite.memo import Memo
from medlite.native import library, library_path, requirement, working_on

CHILD_SECONDS = 120
# Files that loaded well: path -> bytes, time of change in ns, llama-cpp-python.
LOADED = Memo("loaded", tuple[int, int, str], most=256)
LOAD_MODE_NONE = 0  # llama.h, enum llama_load_mode; a mapped file and no_alloc exclude each other
SOURCE_LINE = re.compile(r"([\w.-]+\.(?:c|cpp|h|cu|cuh):\d+: .*)$", re.MULTILINE)

# The parameters come as bytes, since their layout is known only to llama-cpp-python. Structs of this size are passed in
# memory whatever their fields are (System V, AAPCS64).
CHILD = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
def by_value(text):
    raw = bytes.fromhex(text)
    fields = [("words", ctypes.c_uint64 * (len(raw) // 8))]
    return type("Parameters", (ctypes.Structure,), {"_fields_": fields}).from_buffer_copy(raw)
for_model, for_context = by_value(sys.argv[3]), by_value(sys.argv[4])
load, begin = library.llama_model_load_from_file, library.llama_init_from_model
load.restype = begin.restype = ctypes.c_void_p
load.argtypes, begin.argtypes = [ctypes.c_char_p, type(for_model)], [ctypes.c_void_p, type(for_context)]
library.llama_backend_init()
model = load(sys.argv[2].encode(), for_model)
if model:
    begin(model, for_context)
"""


def load_model(path: Path, *, n_gpu_layers: int, on_progress: OnLoad | None = None) -> Model:
    """The model of the file at `path`. Raises EngineError with llama.cpp's reason, also where llama.cpp crashes."""
    check_load(path)
    working_on(f"loading {path}")
    model = Model(path, n_gpu_layers=n_gpu_layers, on_progress=on_progress)
    working_on(f"computing with {path.name}")
    remember(path)
    return model


def check_load(path: Path) -> None:
    """Raise EngineError, with the signal and llama.cpp's reason, if loading `path` crashes and it never loaded well."""
    if not is_remembered(path):
        try_load(path)


def try_load(path: Path) -> None:
    """Load `path` in a child and raise EngineError if that crashes.

    A file that llama.cpp refuses in an orderly way passes: the load itself then tells why. Without an interpreter to
    start, or after two minutes, nothing is known and nothing raised.
    """
    if not sys.executable:
        return
    native = library()
    for_model, for_context = native.llama_model_default_params(), native.llama_context_default_params()
    for_model.no_alloc, for_model.load_mode, for_model.n_gpu_layers = True, LOAD_MODE_NONE, 0
    for_context.n_ctx = for_context.n_batch = for_context.n_ubatch = 512
    if len(bytes(for_model)) % 8 or len(bytes(for_context)) % 8:
        return
    arguments = [str(library_path("llama")), str(path), bytes(for_model).hex(), bytes(for_context).hex()]
    command = [sys.executable, "-I", "-S", "-c", CHILD, *arguments]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    try:
        child = subprocess.run(command, capture_output=True, timeout=CHILD_SECONDS, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return
    if child.returncode < 0:
        reason = SOURCE_LINE.findall(child.stderr.decode("utf-8", "replace").strip())
        words = [signal.Signals(-child.returncode).name, *reason[-1:]]
        raise EngineError(
            f"{path}: llama.cpp crashes on it ({', '.join(words)})",
            hint="the file is damaged or made for another program; make or download it again",
        )


# --- files that were loaded before -----------------------------------------------------------------------------------


def _identity(path: Path) -> tuple[int, int, str]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, requirement()


def is_remembered(path: Path) -> bool:
    """Whether this very file loaded well before."""
    return LOADED.read().get(str(path.resolve())) == _identity(path)


def remember(path: Path) -> None:
    """Note that `path` loaded well. A cache that cannot be written is no error: the file is tried again next time."""
    if not is_remembered(path):
        with suppress(OutputError):
            LOADED.put({str(path.resolve()): _identity(path)})
