"""Loading a GGUF file: tried in a child first, read ahead in order where the user wants that.

llama.cpp maps a file and lets the system fetch its pages, but only once it has read the vocabulary, which takes half a
second at 128k tokens. Here the file is read from its first to its last byte by a thread of its own from the start.
"""

import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from medlite.devices import available_memory
from medlite.engines.llamacpp import abort as llama_abort
from medlite.engines.llamacpp import guard as llama_guard
from medlite.engines.llamacpp.native import Model

BLOCK_BYTES = 8 << 20
RESIDENT_ENOUGH = 0.95  # of a file's pages: more is not read ahead
PREFETCH_VARIABLE = "MEDLITE_PREFETCH"


def load_model(path: Path, *, n_gpu_layers: int, on_progress: Callable[[float], None] | None = None) -> Model:
    """The model of the file at `path`. Raises EngineError with llama.cpp's reason, also where llama.cpp crashes."""
    with read_ahead(path):
        llama_guard.check_load(path)
        llama_abort.now(f"loading {path}")
        model = Model(path, n_gpu_layers=n_gpu_layers, on_progress=on_progress)
    llama_abort.now(f"computing with {path.name}")
    llama_guard.remember(path)
    return model


@contextmanager
def read_ahead(path: Path) -> Iterator[None]:
    """While the block runs, read the file in order into the system's cache, if it fits into memory and is not there.

    Only where $MEDLITE_PREFETCH is 1: it is meant for a disk that seeks, and helped no disk that we could measure. A
    file that cannot be read is left to the block to complain of.
    """
    stop = threading.Event()
    reader = None
    if (
        os.environ.get(PREFETCH_VARIABLE) == "1"
        and path.stat().st_size < available_memory()
        and (resident_share(path) < RESIDENT_ENOUGH)
    ):
        reader = threading.Thread(target=_read, args=(path, stop), name="medlite-read-ahead", daemon=True)
        reader.start()
    try:
        yield
    finally:
        stop.set()
        if reader is not None:
            reader.join()


def _read(path: Path, stop: threading.Event) -> None:
    block = bytearray(BLOCK_BYTES)
    try:
        with path.open("rb", buffering=0) as handle:
            while not stop.is_set() and handle.readinto(block):
                pass
    except OSError:
        return


def resident_share(path: Path) -> float:
    """The share of a file's pages that are in the system's cache; 1 where that cannot be asked."""
    ask = getattr(ctypes.CDLL(None, use_errno=True), "mincore", None)
    n_bytes = path.stat().st_size
    if ask is None or not n_bytes:
        return 1.0
    pages = np.empty(-(-n_bytes // mmap.PAGESIZE), dtype=np.uint8)
    ask.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), n_bytes, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        failed = ask(view.ctypes.data, n_bytes, pages.ctypes.data)
        del view  # the mapping cannot be closed under it
    return 1.0 if failed else float((pages & 1).mean())
