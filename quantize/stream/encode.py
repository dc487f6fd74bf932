"""Rows of weights into a ggml type: by the compiled kernels where they know the type, else by ggml itself.

Both give the same bytes. Rows stay in the source's own dtype until the last step, so no float32 copy of a tensor
is made where the kernels run. `Encoding` is the seam at which another format's encoder stands in for ggml's.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medlite.errors import NotFiniteError, RecipeError
from medlite.formats.gguf import GGML_TYPES, GgmlType
from quantize import kernels
from quantize.families.transforms import Array
from quantize.stream import ggml

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Rows:
    """values: (n_rows, row_length), C-contiguous; uint16 for BF16, float16 for F16, float32 for F32.

    name, first_row: the tensor that they are of, and which of its rows comes first, for messages.
    """

    dtype: str
    values: Array
    name: str = "rows"
    first_row: int = 0

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

    Raises NotFiniteError where a weight is NaN or infinite (ggml would abort the process or write garbage).
    """
    n_rows, row_length = rows.shape
    compiled = kernels.load()
    out = np.empty(n_rows * ggml_type.row_bytes(row_length), np.uint8)
    if compiled is not None and compiled.supports(ggml_type.id, importance is not None):
        compiled.encode(ggml_type.id, GGML_TYPES[rows.dtype].id, rows.values, out, rows.shape, importance)
        return out
    wide = to_float32(rows)
    check_finite(wide)
    if ggml_type.name == "F32":
        return np.ascontiguousarray(wide).view(np.uint8).reshape(-1)
    ggml.quantize_rows(ggml_type, np.ascontiguousarray(wide), out, importance)
    return out


def check_finite(wide: NDArray[np.float32]) -> None:
    """Raise NotFiniteError naming the first row of `wide`, (n_rows, row_length), with a NaN or an infinity."""
    finite = np.isfinite(wide).all(axis=1)
    if not finite.all():
        raise NotFiniteError(int(np.argmin(finite)))


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


NO_ERRORS = RowErrors(0.0, 0.0, 0, 0.0)


def measure_errors(ggml_type: GgmlType, rows: Rows, encoded: Bytes) -> RowErrors:
    """The errors of `encoded` (as `encode` made it) against `rows`, in float64 sums a row."""
    compiled = kernels.load()
    exact = ggml_type.name in (rows.dtype, "F32")
    if compiled is not None and not exact and ggml_type.block_weights >= 32:
        source, decode = GGML_TYPES[rows.dtype].id, ggml.decoder_address(ggml_type.id)
        return _summed(*compiled.measure(ggml_type.id, source, rows.values, encoded, rows.shape, decode).T)
    wide = to_float32(rows)
    if exact:
        return RowErrors(0.0, float(np.einsum("ij,ij->", wide, wide, dtype=np.float64)), 0, 0.0)
    return decoded_errors(wide, ggml.dequantize_rows(ggml_type, encoded, rows.shape))


def decoded_errors(wide: NDArray[np.float32], decoded: NDArray[np.float32]) -> RowErrors:
    """The errors of `decoded` against `wide`, both (n_rows, row_length); `decoded` is overwritten."""
    decoded -= wide
    errors = np.einsum("ij,ij->i", decoded, decoded).astype(np.float64)
    return _summed(errors, np.einsum("ij,ij->i", wide, wide).astype(np.float64))


def _summed(errors: NDArray[np.float64], weights: NDArray[np.float64]) -> RowErrors:
    """The sums over all rows and the worst of them; errors, weights: (n_rows,), each row's sum of squares."""
    ratios = np.divide(errors, weights, out=np.zeros_like(errors), where=weights > 0)
    worst = int(ratios.argmax())
    return RowErrors(float(errors.sum()), float(weights.sum()), worst, float(ratios[worst]))


class Encoding(Protocol):
    """How a format stores the rows of a tensor. Encodings of equal keys make equal bytes of equal rows."""

    @property
    def name(self) -> str:
        """As plans and receipts write it: Q4_K, int4 b32 zp."""
        ...

    @property
    def key(self) -> Hashable: ...

    def encode(self, rows: Rows) -> list[Bytes]:
        """The bytes of `rows` in each part of the tensor. Raises NotFiniteError where a weight is not finite."""
        ...

    def measure(self, rows: Rows, parts: Sequence[Bytes]) -> RowErrors:
        """The errors of `parts`, as `encode` made them, against `rows`."""
        ...


@dataclass(frozen=True, eq=False)
class GgmlEncoding:
    """Blocks of a ggml type, in one part. importance: (row_length,) weights of the columns, None without an imatrix."""

    type: GgmlType
    importance: NDArray[np.float32] | None = None

    @property
    def name(self) -> str:
        return self.type.name

    @property
    def key(self) -> Hashable:
        return self.type.name, id(self.importance)

    def encode(self, rows: Rows) -> list[Bytes]:
        """Raises RecipeError naming the row where float16 cannot hold a weight (it would become infinite)."""
        data = encode(self.type, rows, self.importance)
        if self.type.name == "F16" and rows.dtype != "F16":
            infinite = np.isinf(data.view(np.float16)).reshape(rows.shape).any(axis=1)
            if infinite.any():
                raise RecipeError(
                    f"{rows.name} row {rows.first_row + int(infinite.argmax())} holds a weight beyond "
                    "65504, the largest in F16",
                    hint="--recipe BF16 holds every weight",
                )
        return [data]

    def measure(self, rows: Rows, parts: Sequence[Bytes]) -> RowErrors:
        return measure_errors(self.type, rows, parts[0])
