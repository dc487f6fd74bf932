"""`make sanitize` runs this folder with sanitized kernels; that they are, is shown by a mistake that they must find."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantize import kernels

SANITIZED = os.environ.get("MEDLITE_SANITIZED", "")
pytestmark = pytest.mark.skipif(not SANITIZED, reason="not under make sanitize")

# One row of Q4_K into memory for none.
OVERFLOW = """
import ctypes
import numpy as np
from medlite.formats.gguf import GGML_TYPES
from quantize import kernels

source, out, bad_row = np.ones(256, np.float32), np.empty(1, np.uint8), ctypes.c_int64()
kernels.load().library.medlite_encode(
    GGML_TYPES["Q4_K"].id, GGML_TYPES["F32"].id, source.ctypes.data, out.ctypes.data, 1, 256, None, -1,
    ctypes.byref(bad_row))
"""


def test_the_kernels_under_test_are_the_sanitized_ones() -> None:
    assert Path(kernels.__file__).is_relative_to(Path(SANITIZED).resolve())


def test_a_write_past_the_end_is_found() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", OVERFLOW],  # not this folder, whose kernels are others
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": SANITIZED},
    )
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
