"""The header of a safetensors file, hostile until checked: lengths, types, ranges, overlaps, gaps, duplicates.

Source of the format: huggingface/safetensors README, "Format".
"""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from medlite.errors import CheckpointError
from medlite.formats.json import decode_json

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
AGAIN = "download the file again"

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
    """A tensor of a checkpoint as a range of a file, safetensors or another. shape: outermost first. offset: of its
    first byte in `path`.
    """

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


Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]


@dataclass(frozen=True)
class _Entry:
    """data_offsets: first byte and the byte after the last, counted from the end of the header."""

    dtype: str
    shape: tuple[Count, ...]
    data_offsets: tuple[Count, Count]


def read_safetensors_header(path: Path) -> list[SourceTensor]:
    """The tensors that the safetensors file at `path` holds, in file order, all ranges checked.

    Raises CheckpointError naming the file, the tensor and what is wrong.
    """
    raw, n_file_bytes = _read_header(path)
    entries = decode_json(
        raw, dict[str, msgspec.Raw], CheckpointError, where=f"{path}: header", hint=AGAIN, unique_keys=True
    )
    data_start = 8 + len(raw)
    tensors = [_parse(path, name, entry, data_start) for name, entry in entries.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: tensor.offset)
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            what = "overlaps the tensor before it" if tensor.offset < end else "leaves a gap before it"
            raise CheckpointError(f"{path}: {tensor.name} at byte {tensor.offset} {what} (ends at {end})")
        end = tensor.offset + tensor.n_bytes
    if end != n_file_bytes:
        raise CheckpointError(
            f"{path}: tensors end at byte {end}, the file has {n_file_bytes}",
            hint="the file is cut short; download it again" if end > n_file_bytes else None,
        )
    return tensors


def _read_header(path: Path) -> tuple[bytes, int]:
    """The header's JSON and the size of the file."""
    try:
        with path.open("rb") as handle:
            n_file_bytes = os.fstat(handle.fileno()).st_size
            raw_length = handle.read(8)
            if len(raw_length) < 8:
                raise CheckpointError(f"{path}: {n_file_bytes} bytes, too short for a safetensors file")
            (length,) = struct.unpack("<Q", raw_length)
            if length > min(MAX_HEADER_BYTES, n_file_bytes - 8):
                raise CheckpointError(
                    f"{path}: header of {length} bytes announced, the file has {n_file_bytes}",
                    hint="the file is cut short or not a safetensors file; download it again",
                )
            return handle.read(length), n_file_bytes
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def _parse(path: Path, name: str, raw: Any, data_start: int) -> SourceTensor:
    where = f"{path}: {name}"
    entry = decode_json(raw, _Entry, CheckpointError, where=where)
    if entry.dtype not in DTYPE_BYTES:
        raise CheckpointError(f"{where}: unknown dtype {entry.dtype!r}", hint=f"known: {', '.join(DTYPE_BYTES)}")
    start, end = entry.data_offsets
    n_bytes = math.prod(entry.shape) * DTYPE_BYTES[entry.dtype]
    if end - start != n_bytes:
        raise CheckpointError(
            f"{where}: {end - start} bytes in the file, shape {entry.shape} of {entry.dtype} needs {n_bytes}"
        )
    return SourceTensor(name, entry.dtype, entry.shape, path, data_start + start, n_bytes)
