"""ggml's own quantizers, called in the shared library that llama-cpp-python carries.

ctypes releases the GIL during a call, so threads run these functions side by side.
"""

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from medlite.errors import RecipeError
from medlite.formats.gguf import GgmlType
from medlite.native import load_ggml


@cache
def _library() -> ctypes.CDLL:
    library = load_ggml("ggml-base")
    # Source: ggml/include/ggml.h of the pinned version.
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
    return library


def quantize_rows(
    ggml_type: GgmlType,
    rows: NDArray[np.float32],
    out: NDArray[np.uint8],
    importance: NDArray[np.float32] | None = None,
) -> None:
    """Quantize `rows` (n_rows, n_per_row) into `out` (n_rows * row_bytes) with ggml_quantize_chunk.

    importance: (n_per_row,) weights of the columns, or None. Both arrays must be C-contiguous; the caller has
    checked that blocks divide the row and that every weight is finite (ggml aborts the process otherwise).
    """
    n_rows, n_per_row = rows.shape
    n_bytes = n_rows * ggml_type.row_bytes(n_per_row)
    if not (rows.flags.c_contiguous and out.flags.c_contiguous and out.nbytes == n_bytes):
        raise RecipeError(f"{ggml_type.name}: {out.nbytes} bytes offered for {n_rows} rows of {n_per_row}")
    written = _library().ggml_quantize_chunk(
        ggml_type.id,
        rows.ctypes.data,
        out.ctypes.data,
        0,
        n_rows,
        n_per_row,
        None if importance is None else importance.ctypes.data,
    )
    if written != out.nbytes:
        raise RecipeError(
            f"{ggml_type.name}: ggml wrote {written} bytes, {out.nbytes} were planned",
            hint="llama-cpp-python and medlite disagree on the format; reinstall medlite",
        )


def rows_are_valid(ggml_type: GgmlType, data: NDArray[np.uint8]) -> bool:
    """True if ggml finds no NaN, infinity or impossible scale in `data` (whole rows of `ggml_type`)."""
    return bool(_library().ggml_validate_row_data(ggml_type.id, data.ctypes.data, data.nbytes))


class _TypeTraits(ctypes.Structure):
    """Source: ggml/include/ggml.h, struct ggml_type_traits."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


@cache
def decoder_address(type_id: int) -> int:
    """Where ggml's to_float of a type lies: void (*)(const void *blocks, float *weights, int64_t n_weights)."""
    library = _library()
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    return int(library.ggml_get_type_traits(type_id).contents.to_float)


def dequantize_rows(ggml_type: GgmlType, data: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.float32]:
    """The weights that `data` (whole rows of `ggml_type`) stands for, as (n_rows, row_length) float32."""
    n_rows, row_length = shape
    if data.nbytes != n_rows * ggml_type.row_bytes(row_length):
        raise RecipeError(f"{ggml_type.name}: {data.nbytes} bytes given for {n_rows} rows of {row_length}")
    if ggml_type.name == "F32":
        return data.view("<f4").reshape(shape).copy()
    out = np.empty(shape, np.float32)
    decode = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(decoder_address(ggml_type.id))
    decode(data.ctypes.data, out.ctypes.data, out.size)
    return out
