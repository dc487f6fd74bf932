"""A Hugging Face folder on disk: its config, its tensor headers, and bounded reads of tensor rows.

Nothing is mapped and nothing is unpickled: rows are read with pread into buffers that the caller owns, so memory
stays what the caller asked for.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medlite.errors import CheckpointError
from medlite.files import file_sha256
from medlite.formats.json import read_json
from medlite.formats.safetensors import SourceTensor, read_safetensors_header
from quantize.source.torch_bin import read_torch_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# The index and the only file of each layout, the first that is there is read.
LAYOUTS = ((INDEX_NAME, SINGLE_NAME), ("pytorch_model.bin.index.json", "pytorch_model.bin"))


class SourceFiles:
    """The small files of a folder, each read and parsed at most once. What they hold must not be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._objects: dict[str, dict[str, Any]] = {}
        self._texts: dict[str, str] = {}
        self._hashes: dict[str, str] = {}

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, name: str) -> bool:
        return name in self._objects or name in self._texts or self.path(name).is_file()

    def object(self, name: str) -> dict[str, Any]:
        """The JSON object in the file. Raises CheckpointError where it is missing or anything else."""
        if name not in self._objects:
            self._objects[name] = read_json_object(self.path(name))
        return self._objects[name]

    def object_if_any(self, name: str) -> dict[str, Any]:
        """As `object`, but empty where there is no such file."""
        return self.object(name) if self.has(name) else {}

    def text(self, name: str) -> str:
        """The UTF-8 text in the file. Raises CheckpointError where it cannot be read."""
        if name not in self._texts:
            try:
                self._texts[name] = self.path(name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise CheckpointError(f"{self.path(name)}: {error}") from error
        return self._texts[name]

    def sha256(self, name: str) -> str:
        """SHA-256 of the file's bytes, hex, for the receipts of all artifacts."""
        if name not in self._hashes:
            self._hashes[name] = file_sha256(self.path(name))
        return self._hashes[name]


@dataclass(frozen=True)
class Checkpoint:
    """The config, the small files and the tensor headers of a Hugging Face folder."""

    files: SourceFiles
    config: Mapping[str, Any]
    tensors: Mapping[str, SourceTensor]

    @property
    def folder(self) -> Path:
        return self.files.folder

    @property
    def n_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors.values())

    @property
    def shards(self) -> list[Path]:
        """The files that hold the tensors, sorted."""
        return sorted({tensor.path for tensor in self.tensors.values()})


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises CheckpointError where it is missing or anything else."""
    return read_json(path, dict[str, Any], CheckpointError, hint="download the file again; medlite pull resumes")


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, headers only. Raises CheckpointError naming the file and what is wrong."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder", hint="SOURCE is a folder with config.json and *.safetensors")
    files = SourceFiles(folder)
    config = files.object("config.json")
    shards, weight_map = _shards(files)
    tensors: dict[str, SourceTensor] = {}
    for shard in shards:
        for tensor in read_torch_header(shard) if shard.suffix == ".bin" else read_safetensors_header(shard):
            if tensor.name in tensors:
                raise CheckpointError(f"{shard}: {tensor.name} stands also in {tensors[tensor.name].path.name}")
            tensors[tensor.name] = tensor
    for name, file_name in weight_map.items():
        if name not in tensors or tensors[name].path.name != file_name:
            raise CheckpointError(f"{folder / file_name}: {name} is missing, the index puts it there")
    return Checkpoint(files, config, tensors)


def _shards(files: SourceFiles) -> tuple[list[Path], dict[str, str]]:
    """The files with tensors, in order, and tensor name -> file name as their index has it; empty without an index.

    Raises CheckpointError where no layout is there, the index is malformed or a shard is missing.
    """
    layout = next((names for names in LAYOUTS if any(map(files.has, names))), None)
    if layout is None:
        raise CheckpointError(
            f"{files.folder}: no {SINGLE_NAME} and no {INDEX_NAME}",
            hint="nor the pytorch_model.bin of older models; is the download complete?",
        )
    index, single = layout
    if not files.has(index):
        return [files.path(single)], {}
    weight_map = files.object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{files.path(index)}: weight_map is not an object of file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{files.path(index)}: shard {name!r} leaves the folder")
        if not files.path(name).is_file():
            raise CheckpointError(
                f"{files.path(name)}: missing shard, named by {index}",
                hint="download the missing shard; medlite pull resumes",
            )
    return [files.path(name) for name in names], weight_map


class RowReader:
    """Reads rows of source tensors with pread; safe to share between threads. Use as a context manager."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def __enter__(self) -> "RowReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def open(self, tensors: Mapping[str, SourceTensor]) -> None:
        """Open the files of `tensors`; threads then only read the table of descriptors."""
        for path in {tensor.path for tensor in tensors.values()}:
            self._files[path] = os.open(path, os.O_RDONLY)

    def read_into(self, tensor: SourceTensor, first_row: int, buffer: memoryview) -> None:
        """Fill `buffer` (whole rows) from row `first_row` on. Raises CheckpointError if the file ends early."""
        position = tensor.offset + first_row * tensor.row_bytes
        done = 0
        while done < len(buffer):
            n = os.preadv(self._files[tensor.path], [buffer[done:]], position + done)
            if n == 0:
                raise CheckpointError(
                    f"{tensor.path}: {tensor.name} ends early at byte {position + done}",
                    hint="the file changed or was cut short while it was read",
                )
            done += n
