"""ggml's quantizers again, bit for bit, many blocks side by side: see README.md beside this file.

The extension is optional. Where it was not built, `load()` gives None, `missing_reason()` says why, and callers use
ggml's own functions (quantize/stream/ggml.py), which give the same bytes more slowly.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.errors import NotFiniteError, RecipeError
from medlite.formats.gguf import GGML_TYPES, GGML_TYPES_BY_ID

Memory = NDArray[Any] | bytes | bytearray | memoryview | mmap

BEST_ISA = -1
SOURCE_TYPES = {GGML_TYPES[name].id: GGML_TYPES[name] for name in ("F32", "F16", "BF16")}

# Source: encode.cc.
_UNSUPPORTED_TYPE, _NOT_FINITE, _OVERFLOW_IN_SEARCH = -1, -2, -4


@dataclass(frozen=True)
class Kernels:
    """The loaded extension. isas: the instruction sets that this machine runs, slowest first; the last is used."""

    library: ctypes.CDLL
    isas: tuple[str, ...]

    @property
    def isa(self) -> str:
        return self.isas[-1]

    def supports(self, ggml_type: int, with_importance: bool = False) -> bool:
        """True if rows can be encoded to `ggml_type`, with or without importance weights."""
        return bool(self.library.medlite_supports(ggml_type, int(with_importance)))

    def encode(
        self,
        ggml_type: int,
        source_type: int,
        source: Memory,
        out: Memory,
        shape: tuple[int, int],
        importance: NDArray[np.float32] | None = None,
        isa: str | None = None,
    ) -> int:
        """Encode `shape` = (n_rows, n_per_row) weights from `source` into `out`; returns the bytes written.

        source_type: the ggml id of F32, F16 or BF16. source, out: contiguous memory of exactly the bytes that
        shape and types need. importance: (n_per_row,) weights of the columns. The GIL is released.
        Raises NotFiniteError, which names the row, and RecipeError if type, shape and memory do not fit together or
        (IQ2 and IQ3 only) weights around 1e18 and above overflow the search.
        """
        n_rows, n_per_row = shape
        read = _address(source, _n_bytes(source_type, n_rows, n_per_row, SOURCE_TYPES), writable=False)
        n_written = _n_bytes(ggml_type, n_rows, n_per_row, GGML_TYPES_BY_ID)
        write = _address(out, n_written, writable=True)
        if importance is not None and (importance.dtype != np.float32 or importance.shape != (n_per_row,)):
            raise RecipeError(f"importance is {importance.dtype} {importance.shape}; float32 ({n_per_row},) is needed")
        weights = None if importance is None else np.ascontiguousarray(importance)
        bad_row = ctypes.c_int64(-1)
        done: int = self.library.medlite_encode(
            ggml_type,
            source_type,
            read,
            write,
            n_rows,
            n_per_row,
            None if weights is None else weights.ctypes.data,
            BEST_ISA if isa is None else self.isas.index(isa),
            ctypes.byref(bad_row),
        )
        if done == _NOT_FINITE:
            raise NotFiniteError(bad_row.value)
        if done == _OVERFLOW_IN_SEARCH:
            raise RecipeError(
                f"row {bad_row.value} holds weights so large that the {GGML_TYPES_BY_ID[ggml_type].name} "
                "search overflows float32 (ggml aborts there)",
                hint="give this tensor a type without a grid, for example Q2_K or Q3_K",
            )
        if done == _UNSUPPORTED_TYPE:
            raise RecipeError(
                f"{GGML_TYPES_BY_ID[ggml_type].name}: the kernels do not encode this type"
                f"{'' if importance is not None else ' without importance weights'}",
                hint="ask supports() first and call quantize.stream.ggml otherwise",
            )
        if done != n_written:
            name = GGML_TYPES_BY_ID[ggml_type].name
            raise RecipeError(f"{name}: the kernels wrote {done} bytes, {n_written} were needed")
        return done

    def measure(
        self, ggml_type: int, source_type: int, source: Memory, encoded: Memory, shape: tuple[int, int], decode: int
    ) -> NDArray[np.float64]:
        """(n_rows, 2): each row's sum of squared errors and of squared weights, in float64 over float32 pieces of 2048.

        decode: the address of ggml's to_float of the type, whose blocks hold at least 32 weights. The GIL is released.
        """
        n_rows, n_per_row = shape
        row = GGML_TYPES_BY_ID[ggml_type]
        read = _address(source, _n_bytes(source_type, n_rows, n_per_row, SOURCE_TYPES), writable=False)
        written = _address(encoded, _n_bytes(ggml_type, n_rows, n_per_row, GGML_TYPES_BY_ID), writable=False)
        errors = np.empty((n_rows, 2), np.float64)
        done: int = self.library.medlite_measure(
            source_type,
            read,
            written,
            n_rows,
            n_per_row,
            row.block_weights,
            row.block_bytes,
            decode,
            errors.ctypes.data,
        )
        if done != n_rows:
            raise RecipeError(f"{row.name}: the kernels do not measure rows of {n_per_row}")
        return errors


def _n_bytes(ggml_type: int, n_rows: int, n_per_row: int, known: dict[int, Any]) -> int:
    """Bytes of n_rows rows. Raises RecipeError for a type not in `known` or a row that its block does not divide."""
    if ggml_type not in known:
        raise RecipeError(f"ggml type {ggml_type} is not one of {', '.join(row.name for row in known.values())}")
    row = known[ggml_type]
    if n_rows < 0 or n_per_row <= 0 or n_per_row % row.block_weights:
        raise RecipeError(f"row length {n_per_row} is not a multiple of {row.block_weights} ({row.name} block)")
    return n_rows * int(row.row_bytes(n_per_row))


def _address(memory: Memory, n_bytes: int, writable: bool) -> int:
    """The address of contiguous memory of exactly n_bytes."""
    array = memory if isinstance(memory, np.ndarray) else np.frombuffer(memory, np.uint8)
    if not array.flags.c_contiguous or array.nbytes != n_bytes or (writable and not array.flags.writeable):
        needed = "contiguous writable" if writable else "contiguous"
        raise RecipeError(f"{array.nbytes} bytes offered, {n_bytes} {needed} bytes needed")
    return array.ctypes.data


def _library_path() -> Path | None:
    folder = Path(__file__).parent
    return next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_kernels{suffix}").exists()), None)


@cache
def _open() -> Kernels | str:
    """The kernels, or the reason why there are none."""
    path = _library_path()
    if path is None:
        return "the extension was not built (no C++ compiler when medlite was installed)"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path.name} cannot be loaded: {error}"
    library.medlite_isa.restype = ctypes.c_int
    library.medlite_isa_name.restype = ctypes.c_char_p
    library.medlite_isa_name.argtypes = [ctypes.c_int]
    library.medlite_supports.restype = ctypes.c_int
    library.medlite_supports.argtypes = [ctypes.c_int, ctypes.c_int]
    library.medlite_encode.restype = ctypes.c_int64
    number, pointer, count = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    out = ctypes.POINTER(count)
    library.medlite_encode.argtypes = [number, number, pointer, pointer, count, count, pointer, number, out]
    library.medlite_measure.restype = ctypes.c_int64
    library.medlite_measure.argtypes = [number, pointer, pointer, count, count, count, count, pointer, pointer]
    isas = tuple(library.medlite_isa_name(isa).decode() for isa in range(library.medlite_isa() + 1))
    return Kernels(library, isas)


def load() -> Kernels | None:
    """The kernels for this machine, or None if they were not built; `missing_reason` says why."""
    kernels = _open()
    return kernels if isinstance(kernels, Kernels) else None


def missing_reason() -> str | None:
    """Why `load` gives None, as half a sentence; None if it does not."""
    kernels = _open()
    return kernels if isinstance(kernels, str) else None
