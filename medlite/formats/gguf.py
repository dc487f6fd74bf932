"""GGUF: the header of versions 2 and 3 read, of version 3 written. Tensor data is reached by offset, never loaded.

Layout (source: ggml docs/gguf.md): magic, version, counts, key-values, tensor infos, padding, data.
Everything is little-endian. What comes from a file is hostile until checked: counts against the bytes left,
offsets against the file's size, names against duplicates.
"""

import enum
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from medlite.errors import ArtifactError, RecipeError
from medlite.files import format_bytes

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_HEADER_BYTES = 1 << 30
WINDOW_BYTES = 1 << 20  # read at once where strings are many
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class GgmlType:
    """A tensor element type: `block_weights` weights stand in `block_bytes` bytes."""

    name: str
    id: int
    block_weights: int
    block_bytes: int

    @property
    def is_quantized(self) -> bool:
        return self.block_weights > 1

    def row_bytes(self, n_weights: int) -> int:
        """Bytes of a row of `n_weights`; the caller has checked that blocks divide it."""
        return n_weights // self.block_weights * self.block_bytes


# Source: ggml/src/ggml.c type_traits and gguf-py/gguf/constants.py GGML_QUANT_SIZES.
# fmt: off
GGML_TYPES: dict[str, GgmlType] = {row[0]: GgmlType(*row) for row in (
    ("F32", 0, 1, 4), ("F16", 1, 1, 2), ("BF16", 30, 1, 2), ("F64", 28, 1, 8),
    ("I8", 24, 1, 1), ("I16", 25, 1, 2), ("I32", 26, 1, 4), ("I64", 27, 1, 8),
    ("Q4_0", 2, 32, 18), ("Q4_1", 3, 32, 20), ("Q5_0", 6, 32, 22), ("Q5_1", 7, 32, 24), ("Q8_0", 8, 32, 34),
    ("Q2_K", 10, 256, 84), ("Q3_K", 11, 256, 110), ("Q4_K", 12, 256, 144), ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
    ("IQ2_XXS", 16, 256, 66), ("IQ2_XS", 17, 256, 74), ("IQ2_S", 22, 256, 82),
    ("IQ3_XXS", 18, 256, 98), ("IQ3_S", 21, 256, 110), ("IQ1_S", 19, 256, 50), ("IQ1_M", 29, 256, 56),
    ("IQ4_NL", 20, 32, 18), ("IQ4_XS", 23, 256, 136), ("TQ1_0", 34, 256, 54), ("TQ2_0", 35, 256, 66),
    ("MXFP4", 39, 32, 17), ("NVFP4", 40, 64, 36), ("Q1_0", 41, 128, 18), ("Q2_0", 42, 64, 18),
)}
# fmt: on
GGML_TYPES_BY_ID: dict[int, GgmlType] = {row.id: row for row in GGML_TYPES.values()}

# The recipe's name -> general.file_type. Source: llama.cpp include/llama.h, enum llama_ftype.
# fmt: off
FILE_TYPES: dict[str, int] = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20,
    "Q2_K_S": 21, "IQ3_XS": 22, "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28,
    "IQ2_M": 29, "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38,
}
# fmt: on
FILE_TYPES_BY_ID: dict[int, str] = {number: name for name, number in FILE_TYPES.items()}


class Kind(enum.IntEnum):
    """The type of a metadata value."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# fmt: off
SCALAR_FORMATS: dict[Kind, str] = {
    Kind.UINT8: "B", Kind.INT8: "b", Kind.UINT16: "H", Kind.INT16: "h", Kind.UINT32: "I", Kind.INT32: "i",
    Kind.FLOAT32: "f", Kind.BOOL: "?", Kind.UINT64: "Q", Kind.INT64: "q", Kind.FLOAT64: "d",
}
# fmt: on


@dataclass(frozen=True)
class Value:
    """A metadata value; for an array, `kind` is the elements' kind and `is_array` is set."""

    kind: Kind
    value: Any
    is_array: bool = False


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a GGUF file. shape: outermost first (the file stores it reversed). offset: from the data's start."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    offset: int

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.type.row_bytes(self.n_weights)


@dataclass(frozen=True)
class Header:
    """All of a GGUF file before its data. data_start: where the data begins in the file, in bytes."""

    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_start: int
    n_file_bytes: int
    version: int = VERSION

    def get(self, key: str, default: Any = None) -> Any:
        """The plain value of a metadata key."""
        found = self.metadata.get(key)
        return default if found is None else found.value


def pad_to(n: int, alignment: int) -> int:
    return (n + alignment - 1) // alignment * alignment


# --- writing ---------------------------------------------------------------------------------------------------------


def _pack_string(text: str) -> bytes:
    raw = text.encode("utf-8", errors="surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _pack_value(value: Value) -> bytes:
    if value.is_array:
        items: Sequence[Any] = value.value
        if value.kind is Kind.STRING:
            body = b"".join([_pack_string(item) for item in items])
        else:
            body = struct.pack(f"<{len(items)}{SCALAR_FORMATS[value.kind]}", *items)
        return struct.pack("<IIQ", Kind.ARRAY, value.kind, len(items)) + body
    if value.kind is Kind.STRING:
        return struct.pack("<I", Kind.STRING) + _pack_string(value.value)
    return struct.pack("<I" + SCALAR_FORMATS[value.kind], value.kind, value.value)


TensorRow = tuple[str, GgmlType, tuple[int, ...]]


def split_tensors(rows: list[TensorRow], max_bytes: int | None) -> list[list[TensorRow]]:
    """The tensors of each file, in order. Source: tools/gguf-split/gguf-split.cpp, split_strategy."""
    groups: list[list[TensorRow]] = [[]]
    size = 0
    for row in rows:
        n_bytes = pad_to(row[1].row_bytes(math.prod(row[2])), DEFAULT_ALIGNMENT)
        if max_bytes is not None and n_bytes > max_bytes:
            raise RecipeError(
                f"{row[0]} takes {format_bytes(n_bytes)}, --max-shard-size is {format_bytes(max_bytes)}",
                hint="a tensor is never cut; choose larger shards",
            )
        if max_bytes is not None and groups[-1] and size + n_bytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += n_bytes
    return groups


def split_metadata(metadata: Mapping[str, Value], i: int, n_files: int, n_tensors: int) -> Mapping[str, Value]:
    """The first of several files carries all metadata, the others only where they stand."""
    if n_files == 1:
        return metadata
    split = {
        "split.no": Value(Kind.UINT16, i),
        "split.count": Value(Kind.UINT16, n_files),
        "split.tensors.count": Value(Kind.INT32, n_tensors),
    }
    return {**metadata, **split} if i == 0 else split


def pack_header(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> bytes:
    """The bytes of a file up to its data, padded to the alignment that `metadata` names."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += (_pack_string(key), _pack_value(value))
    for tensor in tensors:
        shape = tuple(reversed(tensor.shape))
        parts += (
            _pack_string(tensor.name),
            struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.type.id, tensor.offset),
        )
    raw = b"".join(parts)
    alignment = metadata["general.alignment"].value if "general.alignment" in metadata else DEFAULT_ALIGNMENT
    return raw + b"\0" * (pad_to(len(raw), alignment) - len(raw))


def place_tensors(rows: Sequence[tuple[str, GgmlType, tuple[int, ...]]]) -> tuple[TensorInfo, ...]:
    """TensorInfos with offsets in the given order, each padded to DEFAULT_ALIGNMENT."""
    placed: list[TensorInfo] = []
    offset = 0
    for name, ggml_type, shape in rows:
        placed.append(TensorInfo(name, ggml_type, shape, offset))
        offset = pad_to(offset + placed[-1].n_bytes, DEFAULT_ALIGNMENT)
    return tuple(placed)


# --- reading ---------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads scalars from a file whose end it knows, so that no length in the file can exhaust memory."""

    def __init__(self, path: Path, handle: BinaryIO, n_file_bytes: int) -> None:
        self.path, self.handle, self.n_file_bytes = path, handle, n_file_bytes

    def fail(self, what: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path}: {what} at byte {self.handle.tell()}",
            hint="the file is damaged or cut short; make or download it again",
        )

    def left(self) -> int:
        return min(self.n_file_bytes, MAX_HEADER_BYTES) - self.handle.tell()

    def take(self, n: int) -> bytes:
        if n > self.left():
            raise self.fail(f"{n} bytes announced, {max(self.left(), 0)} left")
        raw = self.handle.read(n)
        if len(raw) != n:
            raise self.fail(f"{n} bytes announced, {len(raw)} read")
        return raw

    def scalars(self, fmt: str) -> tuple[Any, ...]:
        return struct.unpack("<" + fmt, self.take(struct.calcsize("<" + fmt)))

    def string(self) -> str:
        (length,) = self.scalars("Q")
        return self.take(length).decode("utf-8", errors="surrogateescape")

    def strings(self, count: int) -> list[str]:
        """`count` strings, through a window: a vocabulary with its merges holds hundreds of thousands."""
        found: list[bytes] = []
        window, at = b"", 0
        for _ in range(count):
            if at + 8 > len(window):
                window, at = self._window(window[at:], 8), 0
            (length,) = _LENGTH.unpack_from(window, at)
            at += 8
            if at + length > len(window):
                window, at = self._window(window[at:], length), 0
            found.append(window[at : at + length])
            at += length
        self.handle.seek(at - len(window), 1)
        return [raw.decode("utf-8", errors="surrogateescape") for raw in found]

    def _window(self, rest: bytes, n: int) -> bytes:
        """`rest`, which was read already, and at least so much more that it holds n bytes."""
        missing = n - len(rest)
        if missing > self.left():
            self.handle.seek(-len(rest), 1)
            raise self.fail(f"{n} bytes announced, {max(self.left(), 0)} left")
        return rest + self.take(min(max(missing, WINDOW_BYTES), self.left()))

    def kind(self) -> Kind:
        (raw,) = self.scalars("I")
        try:
            return Kind(raw)
        except ValueError:
            raise self.fail(f"unknown metadata type {raw}") from None

    def value(self) -> Value:
        kind = self.kind()
        if kind is not Kind.ARRAY:
            return Value(kind, self.string() if kind is Kind.STRING else self.scalars(SCALAR_FORMATS[kind])[0])
        element = self.kind()
        (count,) = self.scalars("Q")
        if element is Kind.ARRAY:
            raise self.fail("an array of arrays")
        smallest = 8 if element is Kind.STRING else struct.calcsize("<" + SCALAR_FORMATS[element])
        if count * smallest > self.left():
            raise self.fail(f"an array of {count} values, {max(self.left(), 0)} bytes left")
        if element is Kind.STRING:
            return Value(element, self.strings(count), is_array=True)
        return Value(element, list(self.scalars(f"{count}{SCALAR_FORMATS[element]}")), is_array=True)


def _read_tensor_info(reader: _Reader, alignment: int) -> TensorInfo:
    name = reader.string()
    (n_dimensions,) = reader.scalars("I")
    if not 1 <= n_dimensions <= MAX_DIMENSIONS:
        raise reader.fail(f"tensor {name!r}: {n_dimensions} dimensions")
    shape = tuple(reversed(reader.scalars(f"{n_dimensions}Q")))
    type_id, offset = reader.scalars("IQ")
    ggml_type = GGML_TYPES_BY_ID.get(type_id)
    if ggml_type is None:
        raise reader.fail(f"tensor {name!r}: unknown type {type_id}")
    if shape[-1] % ggml_type.block_weights:
        raise reader.fail(
            f"tensor {name!r}: row length {shape[-1]} is not a multiple of {ggml_type.block_weights} "
            f"({ggml_type.name} block)"
        )
    if math.prod(shape) > 1 << 48:
        raise reader.fail(f"tensor {name!r}: shape {shape} overflows")
    if offset % alignment:
        raise reader.fail(f"tensor {name!r}: offset {offset} is not a multiple of {alignment}")
    return TensorInfo(name, ggml_type, shape, offset)


def _check_ranges(path: Path, header: Header) -> None:
    """Raise ArtifactError if a tensor's bytes leave the file or overlap another's."""
    end, previous = 0, ""
    for tensor in sorted(header.tensors, key=lambda t: t.offset):
        if tensor.offset < end:
            raise ArtifactError(f"{path}: tensors {previous!r} and {tensor.name!r} overlap")
        end, previous = tensor.offset + tensor.n_bytes, tensor.name
        if header.data_start + end > header.n_file_bytes:
            raise ArtifactError(
                f"{path}: {tensor.name!r} ends at byte {header.data_start + end}, the file has {header.n_file_bytes}",
                hint="the file is cut short; make or download it again",
            )


def read_header(path: Path) -> Header:
    """The checked header of the GGUF file at `path`. Raises ArtifactError naming what is wrong and where."""
    try:
        handle = path.open("rb")
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror or error}") from error
    with handle:
        n_file_bytes = handle.seek(0, 2)
        handle.seek(0)
        reader = _Reader(path, handle, n_file_bytes)
        magic = handle.read(4)
        if magic != MAGIC:
            raise ArtifactError(
                f"{path}: starts with {magic!r}, a GGUF file starts with {MAGIC!r}",
                hint="medlite quantize makes a GGUF file from a Hugging Face folder",
            )
        (version,) = reader.scalars("I")
        if version not in (2, VERSION):
            raise ArtifactError(
                f"{path}: GGUF version {version}, medlite reads 2 and {VERSION}", hint="a newer medlite may read it"
            )
        n_tensors, n_metadata = reader.scalars("QQ")
        if n_metadata * 13 > reader.left() or n_tensors * 32 > reader.left():
            raise reader.fail(f"{n_metadata} keys and {n_tensors} tensors announced, {reader.left()} bytes left")
        metadata: dict[str, Value] = {}
        for _ in range(n_metadata):
            key = reader.string()
            if key in metadata:
                raise reader.fail(f"metadata key {key!r} stands twice")
            metadata[key] = reader.value()
        alignment = metadata["general.alignment"].value if "general.alignment" in metadata else DEFAULT_ALIGNMENT
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise reader.fail(f"general.alignment is {alignment!r}, a power of two was needed")
        tensors: dict[str, TensorInfo] = {}
        for _ in range(n_tensors):
            info = _read_tensor_info(reader, alignment)
            if info.name in tensors:
                raise reader.fail(f"tensor {info.name!r} stands twice")
            tensors[info.name] = info
        header = Header(metadata, tuple(tensors.values()), pad_to(handle.tell(), alignment), n_file_bytes, version)
    _check_ranges(path, header)
    return header
