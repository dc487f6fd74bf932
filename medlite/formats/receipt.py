"""The receipts of what medlite quantized, read: NAME.gguf.receipt.json, and receipt.json inside an ONNX folder.

`quantize` writes them, and writes more than stands here: whatever a program of ours asks of a receipt, it asks here. A
receipt lies on the user's disk, so a name that leaves the folder or a negative size is refused like any other fault.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from medlite.errors import ArtifactError
from medlite.formats.json import read_json, read_json_of

GGUF_SCHEMA = "medlite-receipt-1"
ONNX_SCHEMA = "medlite-onnx-receipt-1"
ONNX_RECEIPT_NAME = "receipt.json"
HINT = "the receipt is damaged"
MOST_BYTES = 100 << 20
PART = re.compile(r"-\d{5}-of-\d{5}$")  # what the stem of a part of a GGUF file ends in

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
FileName = Annotated[str, msgspec.Meta(pattern=r"^(?!\.\.?$)[^/\x00]+$")]  # of one folder


@dataclass(frozen=True)
class Shard:
    """A file of weights of the source. sha256: None where it was not computed."""

    name: str
    sha256: str | None


@dataclass(frozen=True)
class Source:
    """The checkpoint: its hub repository, or its folder's name."""

    name: str
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class TokenizerCheck:
    """What the comparison of the tokenizers found, see quantize.source.parity."""

    not_checked: tuple[str, ...]
    mismatches: tuple[str, ...]


@dataclass(frozen=True)
class GgufFile:
    """A part of the artifact, or the whole of it. The header is the metadata and the list of tensors."""

    name: FileName
    n_bytes: Count
    sha256: str
    header_sha256: str
    n_header_bytes: Count


@dataclass(frozen=True)
class GgufTensor:
    """A tensor. shape: outermost first. file: index of the one that holds it."""

    name: str
    type: str
    shape: tuple[Count, ...]
    n_bytes: Count
    file: Count
    sha256: str


@dataclass(frozen=True)
class GgufReceipt:
    """Of a GGUF file, or of one in parts. made_by: package -> version. total: sqnr_db over all tensors, if measured."""

    made_by: dict[str, str]
    source: Source
    recipe: str
    n_params: int
    bits_per_weight: float
    files: tuple[GgufFile, ...]
    notes: tuple[str, ...]
    tokenizer_check: TokenizerCheck | None
    tensors: tuple[GgufTensor, ...]
    total: dict[str, float | None]
    imatrix_sha256: str | None = None


@dataclass(frozen=True)
class OnnxFile:
    """A file of the folder."""

    name: FileName
    n_bytes: Count
    sha256: str


@dataclass(frozen=True)
class Piece:
    """A range of the data file."""

    name: str
    offset: Count
    n_bytes: Count
    sha256: str


@dataclass(frozen=True)
class OnnxTensor:
    """A tensor, stored as one piece or several (codes, scales, zero points)."""

    name: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class OnnxReceipt:
    """Of an ONNX folder, as `GgufReceipt`. block: weights that share a scale."""

    source: Source
    recipe: str
    block: int
    device: str
    n_params: int
    bits_per_weight: float
    files: tuple[OnnxFile, ...]
    tensors: tuple[OnnxTensor, ...]
    total: dict[str, float | None]


def receipt_path(path: Path) -> Path:
    """Where the receipt of the artifact at `path` lies: inside a folder, beside a file. The parts of a GGUF file have
    one, named without their number.
    """
    if path.is_dir():
        return path / ONNX_RECEIPT_NAME
    return path.with_name(f"{PART.sub('', path.stem)}{path.suffix}.receipt.json")


def part_paths(path: Path, n: int) -> tuple[Path, ...]:
    """The files of the GGUF file `path`, or of the one that `path` is a part of, in `n` parts. Source: llama.cpp
    src/llama.cpp, llama_split_path.
    """
    if n == 1:
        return (path,)
    stem = PART.sub("", path.stem)
    return tuple(path.with_name(f"{stem}-{i + 1:05d}-of-{n:05d}{path.suffix}") for i in range(n))


def read_gguf_receipt(path: Path) -> GgufReceipt:
    """The receipt of the GGUF file at `path`. Raises ArtifactError where it is malformed or of another schema."""
    return read_json_of(GGUF_SCHEMA, receipt_path(path), GgufReceipt, ArtifactError, hint=HINT, most_bytes=MOST_BYTES)


def read_onnx_receipt(folder: Path) -> OnnxReceipt:
    """The receipt in the ONNX folder. Raises ArtifactError where it is malformed or of another schema."""
    return read_json_of(
        ONNX_SCHEMA, folder / ONNX_RECEIPT_NAME, OnnxReceipt, ArtifactError, hint=HINT, most_bytes=MOST_BYTES
    )


# --- single facts, for those who can do without ----------------------------------------------------------------------


@dataclass(frozen=True)
class _SourceName:
    name: str


@dataclass(frozen=True)
class _Named:
    source: _SourceName


@dataclass(frozen=True)
class _Hash:
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class _Hashed:
    files: tuple[_Hash, ...]


def source_name(path: Path) -> str:
    """The checkpoint that the receipt of the artifact at `path` names, empty without a receipt that says it."""
    try:
        return read_json(receipt_path(path), _Named, ArtifactError, most_bytes=MOST_BYTES).source.name
    except ArtifactError:
        return ""


def stated_sha256(path: Path, n_bytes: int) -> str:
    """The hash that the receipt of the GGUF file at `path` states for a file of `n_bytes`, else an empty text."""
    try:
        files = read_json_of(GGUF_SCHEMA, receipt_path(path), _Hashed, ArtifactError, most_bytes=MOST_BYTES).files
    except ArtifactError:
        return ""
    return files[0].sha256 if len(files) == 1 and files[0].n_bytes == n_bytes and path.is_file() else ""
