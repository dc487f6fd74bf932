"""What an artifact to come is made of, in words that every format shares: tensors, their parts, files.

A format's plan (quantize.gguf.plan, quantize.onnx.plan) says how each tensor is stored and where; slabs, encoder,
writer, receipt and comparison know no more of it than stands here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError
from medlite.files import part_path
from medlite.formats.gguf import TensorInfo, Value
from medlite.formats.receipt import part_paths
from medlite.formats.safetensors import SourceTensor
from quantize.families.transforms import KEEP, Transform
from quantize.match import ModelTensor
from quantize.source.checkpoint import Checkpoint
from quantize.stream.encode import Encoding

StatedRows = Callable[[int, int], NDArray[np.float32]]


@dataclass(frozen=True)
class Part:
    """What a file of the output holds of a tensor: n_rows equal rows, from byte `offset` of the file on.

    file: which of the plan's files. dtype, shape: of the whole part; ("uint8", (n_rows, row_bytes)) for ggml's blocks.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_rows: int
    offset: int
    file: int = 0

    @classmethod
    def of_tensor(cls, info: TensorInfo, file: int, data_start: int) -> "Part":
        """The rows that a GGUF header describes. data_start: where the tensors of that file begin."""
        n_rows = info.n_weights // info.shape[-1]
        return cls(info.name, "uint8", (n_rows, info.n_bytes // n_rows), n_rows, data_start + info.offset, file)

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def row_bytes(self) -> int:
        return self.n_bytes // self.n_rows


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output: where its values come from, how they are stored, and where.

    shape: (n_rows, row_length), or (row_length,). encoding: of its rows into `parts`. reason: why this encoding.
    source, transform: the checkpoint's tensor and what its rows need, row_group of them together; or, with source
    None, stated: float32 rows [first, first + n) of what the config states or another exporter's graph holds.
    is_parameter: False for what only the config states (rotary factors), which is no weight of the model.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    parts: tuple[Part, ...]
    reason: str
    source: SourceTensor | None = None
    transform: Transform = KEEP
    row_group: int = 1
    stated: StatedRows | None = field(default=None, compare=False)
    is_parameter: bool = True

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return sum(part.n_bytes for part in self.parts)


def planned_tensor(tensor: ModelTensor, encoding: Encoding, parts: tuple[Part, ...], reason: str) -> PlannedTensor:
    """`tensor` of the model, as it is stored in the output."""
    return PlannedTensor(
        tensor.name,
        tensor.shape,
        encoding,
        parts,
        reason,
        tensor.source,
        tensor.transform,
        tensor.row_group,
        None if tensor.values is None else array_rows(tensor.values),
        tensor.is_parameter,
    )


def array_rows(values: NDArray[np.float32]) -> StatedRows:
    """The rows of an array, as PlannedTensor.stated gives them. values: (..., row_length)."""

    def rows(first: int, n: int) -> NDArray[np.float32]:
        return np.ascontiguousarray(values.reshape(-1, values.shape[-1])[first : first + n], np.float32)

    return rows


@dataclass(frozen=True)
class PlannedFile:
    """One file of the output: the bytes that it begins with and its exact size. name: within a folder."""

    header: bytes
    n_bytes: int
    name: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything about one artifact, decided before a byte is written, whatever its format.

    ignored: source tensor name -> reason. facts: what the receipt says of this format alone. notes: what a user must
    know of the result. made_by: package -> version, beside those of every conversion. stamp: what decides the
    tensors' bytes beside the headers, the source and the version. metadata: that of GGUF files, which their headers
    hold. companions: the small files of a folder, as bytes or as the file to copy; None where it is no folder.
    """

    checkpoint: Checkpoint
    architecture: str
    recipe: str
    tensors: tuple[PlannedTensor, ...]
    files: tuple[PlannedFile, ...]
    ignored: Mapping[str, str]
    facts: Mapping[str, Any]
    stamp: bytes
    notes: tuple[str, ...] = ()
    made_by: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Value] = field(default_factory=dict)
    companions: Mapping[str, bytes | Path] | None = None

    @property
    def is_folder(self) -> bool:
        return self.companions is not None

    @property
    def n_bytes(self) -> int:
        """The exact size of the files; a folder's companions come on top."""
        return sum(file.n_bytes for file in self.files)

    @property
    def n_tensor_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def n_params(self) -> int:
        """Weights of the model; what only the config states is none."""
        return sum(tensor.n_weights for tensor in self.tensors if tensor.is_parameter)

    @property
    def bits_per_weight(self) -> float:
        """Bits that the model's weights take in the files, scales included, per weight."""
        return 8 * sum(tensor.n_bytes for tensor in self.tensors if tensor.is_parameter) / self.n_params

    def paths(self, path: Path) -> tuple[Path, ...]:
        """Where each file goes: into the folder `path`, to `path` itself, or to llama.cpp's split names beside it."""
        if self.is_folder:
            return tuple(path / file.name for file in self.files)
        return part_paths(path, len(self.files))

    def output(self, path: Path) -> "Output":
        """The plan under the name `path`. Raises CheckpointError where the source lacks a file that it carries."""
        for content in (self.companions or {}).values():
            if isinstance(content, Path) and not content.is_file():
                raise CheckpointError(
                    f"{content}: missing, an ONNX folder carries it for every runtime",
                    hint="AutoTokenizer.from_pretrained(SOURCE).save_pretrained(SOURCE) writes it",
                )
        return Output(self, path)


@dataclass(frozen=True)
class Output:
    """One artifact to write: a plan and the name that it gets."""

    plan: Plan
    path: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """Final names of the files, in the plan's order."""
        return self.plan.paths(self.path)

    @property
    def part_paths(self) -> tuple[Path, ...]:
        """Where each file grows until it is whole."""
        return self.plan.paths(part_path(self.path)) if self.plan.is_folder else tuple(map(part_path, self.paths))
