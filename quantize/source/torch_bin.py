"""The tensors of a pytorch_model*.bin shard as file ranges, so its rows are read like those of safetensors.

A .bin file is a zip archive of a pickle and of raw storages. Only torch reads the pickle, with weights_only=True
(plain tensors, no code) and mmap=True (nothing is copied); we keep names, shapes and the places in the file.
Source of the format: torch/serialization.py, _save and _load.
"""

import mmap
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medlite.errors import CheckpointError, MissingExtraError
from medlite.formats.safetensors import DTYPE_BYTES, SourceTensor

PROBE_BYTES = 4096
LOCAL_HEADER_BYTES = 30  # of a zip entry, before its name and extra field (APPNOTE.TXT, 4.3.7)
# fmt: off
DTYPES = {
    "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float64": "F64",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8", "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
# What torch.load raises for a file that it cannot read.
REFUSALS = (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, EOFError, OSError)
# fmt: on

Records = dict[int, int]  # where each storage begins in the file -> its bytes


def read_torch_header(path: Path) -> list[SourceTensor]:
    """The tensors that the shard at `path` holds. Raises MissingExtraError without torch, CheckpointError where the
    file is damaged, holds more than plain tensors, or tensors that are no whole rows.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch") from error
    records = _records(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except REFUSALS as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: torch does not load it with weights_only=True: {first_line}",
            hint="only plain tensors are read; a pickle that needs code is never run",
        ) from error
    if not (
        isinstance(state, Mapping)
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items())
    ):
        raise CheckpointError(f"{path}: holds more than tensors by name", hint="a training state is no checkpoint")
    if not state:
        raise CheckpointError(f"{path}: holds no tensor")
    base = _mapped_at(path, [tensor.untyped_storage() for tensor in state.values()], records)
    return [_source_tensor(path, name, tensor, base, records) for name, tensor in state.items()]


def _records(path: Path) -> Records:
    """The archive's uncompressed entries by their place in the file."""
    try:
        n_file_bytes = path.stat().st_size
        with zipfile.ZipFile(path) as archive, path.open("rb") as handle:
            records: Records = {}
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{path}: {entry.filename} is compressed, torch stores plain bytes")
                handle.seek(entry.header_offset + LOCAL_HEADER_BYTES - 4)
                name_and_extra = handle.read(4)
                offset = (
                    entry.header_offset
                    + LOCAL_HEADER_BYTES
                    + int.from_bytes(name_and_extra[:2], "little")
                    + int.from_bytes(name_and_extra[2:], "little")
                )
                if offset + entry.file_size > n_file_bytes:
                    raise CheckpointError(f"{path}: {entry.filename} ends past the file's {n_file_bytes} bytes")
                records[offset] = entry.file_size
            return records
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path}: {error}; a file of torch 1.6 or later was needed",
            hint="the file is cut short, or load and save it once with a current torch",
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def _mapped_at(path: Path, storages: list[Any], records: Records) -> int:
    """The address at which torch mapped the file: the one under which every storage is a record with its bytes."""
    first = min(storages, key=lambda storage: int(storage.data_ptr()))
    with path.open("rb") as handle:
        for offset in records:
            base = int(first.data_ptr()) - offset
            if base % mmap.PAGESIZE == 0 and all(_is_at(handle.fileno(), s, base, records) for s in storages):
                return base
    raise CheckpointError(f"{path}: its tensors were not found in the file", hint="convert it to safetensors")


def _is_at(descriptor: int, storage: Any, base: int, records: Records) -> bool:
    offset, n_bytes = int(storage.data_ptr()) - base, int(storage.nbytes())
    if offset not in records or records[offset] < n_bytes:
        return False
    n = min(n_bytes, PROBE_BYTES)
    return os.pread(descriptor, n, offset) == bytes(storage[:n])


def _source_tensor(path: Path, name: str, tensor: Any, base: int, records: Records) -> SourceTensor:
    dtype = DTYPES.get(str(tensor.dtype))
    if dtype is None:
        raise CheckpointError(f"{path}: {name} is {tensor.dtype}, one of {', '.join(DTYPES)} was needed")
    if not tensor.is_contiguous():
        raise CheckpointError(f"{path}: {name} is no contiguous tensor", hint="save it again with .contiguous()")
    start = int(tensor.untyped_storage().data_ptr()) - base
    offset = start + int(tensor.storage_offset()) * DTYPE_BYTES[dtype]
    n_bytes = int(tensor.numel()) * DTYPE_BYTES[dtype]
    if offset + n_bytes > start + records[start]:
        raise CheckpointError(f"{path}: {name} ends past its storage")
    return SourceTensor(name, dtype, tuple(tensor.shape), path, offset, n_bytes)
