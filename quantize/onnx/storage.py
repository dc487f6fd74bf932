"""How a tensor of an ONNX folder is stored: plain floats, or blocks of low-bit codes with scales and zero points."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError
from medlite.formats.gguf import pad_to
from quantize.onnx.blocks import LARGEST_WEIGHT, BlockFormat, Blocks, decode_rows, encode_rows
from quantize.stream.encode import Bytes, RowErrors, Rows, check_finite, decoded_errors, to_float32
from quantize.stream.plan import Part

SMALL_ALIGNMENT = 64  # MLAS reads whole cache lines
PAGE_ALIGNMENT = 4096  # a large tensor that begins a page can be mapped without a copy
PAGE_ALIGNED_FROM_BYTES = 1 << 20

GRAPH_FILE, DATA_FILE = 0, 1  # the files of a folder's plan: the graph is all header, the data have none


@dataclass(frozen=True)
class Storage:
    """An encoding (quantize.stream.encode.Encoding): floats of `bits`, or blocks."""

    bits: int
    blocks: BlockFormat | None = None

    @property
    def name(self) -> str:
        """As plans and receipts write it: float32, int8 b32, int4 b32 zp."""
        if self.blocks is None:
            return f"float{self.bits}"
        return f"int{self.bits} b{self.blocks.block}" + ("" if self.blocks.symmetric else " zp")

    @property
    def key(self) -> Hashable:
        return self

    def encode(self, rows: Rows) -> list[Bytes]:
        """Codes, scales and zero points, or floats. Raises CheckpointError where float16 cannot hold a weight."""
        wide = to_float32(rows)
        check_finite(wide)
        if self.blocks is None:
            stored = wide.astype(self._float)
            self._check_range(rows, bool(np.isfinite(stored).all()))
            return [stored.view(np.uint8).reshape(-1)]
        self._check_range(rows, float(np.abs(wide).max()) <= LARGEST_WEIGHT)
        made = encode_rows(wide, self.blocks)
        parts = [part for part in (made.codes, made.scales, made.zero_points) if part is not None]
        return [np.ascontiguousarray(part).view(np.uint8).reshape(-1) for part in parts]

    def measure(self, rows: Rows, parts: Sequence[Bytes]) -> RowErrors:
        return decoded_errors(to_float32(rows), self.decode(parts, rows.shape))

    def decode(self, parts: Sequence[Bytes], shape: tuple[int, int]) -> NDArray[np.float32]:
        """The weights that `parts` stand for, of `shape` (n_rows, row_length)."""
        n_rows, row_length = shape
        if self.blocks is None:
            return parts[0].view(self._float).astype(np.float32).reshape(shape)
        codes, scales, *zeros = (part.reshape(n_rows, -1) for part in parts)
        return decode_rows(Blocks(codes, scales.view(np.float16), zeros[0] if zeros else None), self.blocks, row_length)

    @property
    def _float(self) -> type[np.float16 | np.float32]:
        return np.float16 if self.bits == 16 else np.float32

    def _check_range(self, rows: Rows, within: bool) -> None:
        if not within:
            raise CheckpointError(
                f"{rows.name}: a weight is beyond float16's range, in which {self.name} is stored",
                hint="--recipe fp32 --device cpu",
            )


def place(name: str, shape: tuple[int, ...], storage: Storage, end: int) -> tuple[tuple[Part, ...], int]:
    """The parts of a tensor from byte `end` of the data file on, and where they end."""
    n_rows, row_length = math.prod(shape[:-1]), shape[-1]
    layout = storage.blocks
    if layout is None:
        rows = [(name, f"float{storage.bits}", shape)]
    else:
        rows = [
            (name, "uint8", (n_rows, layout.code_bytes(row_length))),
            (f"{name}.scales", "float16", (n_rows, layout.n_blocks(row_length))),
        ]
        if not layout.symmetric:
            rows.append((f"{name}.zero_points", "uint8", (n_rows, layout.zero_point_bytes(row_length))))
    parts = []
    for part_name, dtype, part_shape in rows:
        n_bytes = math.prod(part_shape) * np.dtype(dtype).itemsize
        end = pad_to(end, PAGE_ALIGNMENT if n_bytes >= PAGE_ALIGNED_FROM_BYTES else SMALL_ALIGNMENT)
        parts.append(Part(part_name, dtype, part_shape, n_rows, end, DATA_FILE))
        end += n_bytes
    return tuple(parts), end
