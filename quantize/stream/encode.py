"""Rows of weights into a ggml type: by the compiled kernels where they know the type, else by ggml itself.

Both give the same bytes. Rows stay in the source's own dtype until the last step, so no float32 copy of a tensor
is made where the kernels run.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.formats.gguf import GGML_TYPES, GgmlType
from quantize import kernels
from quantize.families.transforms import Array
from quantize.stream import ggml


class NotFiniteRowError(ValueError):
    """A weight is NaN or infinite; `row` counts from the rows that were given. The caller names the tensor."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row}")
        self.row = row


@dataclass(frozen=True)
class Rows:
    """values: (n_rows, row_length), C-contiguous; uint16 for BF16, float16 for F16, float32 for F32."""

    dtype: str
    values: Array

    @property
    def shape(self) -> tuple[int, int]:
        n_rows, row_length = self.values.shape
        return int(n_rows), int(row_length)


VIEWS: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


def to_float32(rows: Rows) -> NDArray[np.float32]:
    """The weights as float32, exactly."""
    if rows.dtype != "BF16":
        return rows.values.astype(np.float32, copy=False)
    wide = rows.values.astype(np.uint32)
    np.left_shift(wide, 16, out=wide)
    return wide.view(np.float32)


def encode(ggml_type: GgmlType, rows: Rows, importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """`rows` in `ggml_type`, as bytes. importance: (row_length,), the weight of each column.

    Raises NotFiniteRowError where a weight is NaN or infinite (ggml would abort the process or write garbage).
    """
    n_rows, row_length = rows.shape
    compiled = kernels.load()
    if compiled is not None and compiled.supports(ggml_type.id, importance is not None):
        out = np.empty(n_rows * ggml_type.row_bytes(row_length), np.uint8)
        try:
            compiled.encode(ggml_type.id, GGML_TYPES[rows.dtype].id, rows.values, out, rows.shape, importance)
        except kernels.NotFiniteError as error:
            raise NotFiniteRowError(error.row) from error
        return out
    wide = to_float32(rows)
    finite = np.isfinite(wide)
    if not finite.all():
        raise NotFiniteRowError(int(np.argwhere(~finite)[0][0]))
    if ggml_type.name == "F32":
        return np.ascontiguousarray(wide).view(np.uint8).reshape(-1)
    out = np.empty(n_rows * ggml_type.row_bytes(row_length), np.uint8)
    ggml.quantize_rows(ggml_type, np.ascontiguousarray(wide), out, importance)
    return out


@dataclass(frozen=True)
class RowErrors:
    """How far encoded rows are from their source, summed so that slabs add up.

    squared_error, squared_weight: sums over all weights. worst_row: index of the row with the largest ratio of the
    two; worst_ratio: that ratio.
    """

    squared_error: float
    squared_weight: float
    worst_row: int
    worst_ratio: float


def measure_errors(ggml_type: GgmlType, rows: Rows, encoded: NDArray[np.uint8]) -> RowErrors:
    """The errors of `encoded` (as `encode` made it) against `rows`, in float64 sums a row."""
    compiled = kernels.load()
    exact = ggml_type.name in (rows.dtype, "F32")
    if compiled is not None and not exact and ggml_type.block_weights >= 32:
        errors, weights = compiled.measure(
            ggml_type.id,
            GGML_TYPES[rows.dtype].id,
            rows.values,
            encoded,
            rows.shape,
            ggml.decoder_address(ggml_type.id),
        ).T
    else:
        wide = to_float32(rows)
        if exact:
            return RowErrors(0.0, float(np.einsum("ij,ij->", wide, wide, dtype=np.float64)), 0, 0.0)
        difference = ggml.dequantize_rows(ggml_type, encoded, rows.shape)
        difference -= wide
        errors = np.einsum("ij,ij->i", difference, difference).astype(np.float64)
        weights = np.einsum("ij,ij->i", wide, wide).astype(np.float64)
    ratios = np.divide(errors, weights, out=np.zeros_like(errors), where=weights > 0)
    worst = int(ratios.argmax())
    return RowErrors(float(errors.sum()), float(weights.sum()), worst, float(ratios[worst]))
