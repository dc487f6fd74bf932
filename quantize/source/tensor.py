"""A tensor of a checkpoint as a range of a file, whichever kind of file holds it."""

import math
from dataclasses import dataclass
from pathlib import Path

# Bytes of one element. Source: safetensors/src/tensor.rs, Dtype. Only FLOAT_DTYPES can be weights of a plan.
# fmt: off
DTYPE_BYTES: dict[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}
# fmt: on
FLOAT_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of the checkpoint. shape: outermost first. offset: of its first byte in `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int

    @property
    def row_length(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.row_length * DTYPE_BYTES[self.dtype]

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])
