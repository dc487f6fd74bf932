"""The oracle: llama.cpp's own llama_model_quantize, called in the library of llama-cpp-python."""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@LOG_CALLBACK
def _quiet(level: int, text: bytes, user_data: object) -> None:
    pass


def llama_quantize(
    source: Path,
    target: Path,
    file_type: int,
    importance: Mapping[str, np.ndarray] | None = None,
    overrides: tuple[tuple[str, int], ...] = (),
) -> None:
    """Quantize the GGUF file `source` into `target` as llama-quantize does."""
    import llama_cpp.llama_cpp as api

    previous, previous_data = api.llama_log_callback(), ctypes.c_void_p()
    api.llama_log_get(ctypes.byref(previous), ctypes.byref(previous_data))
    api.llama_log_set(_quiet, None)
    try:
        _quantize(api, source, target, file_type, importance, overrides)
    finally:
        api.llama_log_set(previous, previous_data)


def _quantize(
    api: Any,
    source: Path,
    target: Path,
    file_type: int,
    importance: Mapping[str, np.ndarray] | None,
    overrides: tuple[tuple[str, int], ...],
) -> None:
    params = api.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 2
    if importance is not None:
        rows = (api.llama_model_imatrix_data * (len(importance) + 1))()
        for row, (name, values) in zip(rows, importance.items(), strict=False):
            row.name = name.encode()
            row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            row.size = values.size
        params.imatrix = rows
    if overrides:
        table = (api.llama_model_tensor_override * (len(overrides) + 1))()
        for row, (pattern, type_id) in zip(table, overrides, strict=False):
            row.pattern, row.type = pattern.encode(), type_id
        params.tt_overrides = table
    status = api.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert status == 0, f"llama_model_quantize returned {status}"
