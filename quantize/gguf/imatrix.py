"""Importance matrices: how much each column of a weight matrix matters, as llama-imatrix collects it.

Two formats: GGUF (sums of squared inputs and counts) and the older .dat. Values equal what llama-quantize hands to
ggml. Source: llama.cpp common/imatrix-loader.cpp and tools/quantize/quantize.cpp, load_imatrix.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from medlite.errors import RecipeError
from medlite.formats.gguf import MAGIC, GgmlType, read_header
from quantize.families.categories import category_of
from quantize.gguf.recipes import IMATRIX_TYPES, Choice, Recipe

Importance = Mapping[str, NDArray[np.float32]]  # GGUF tensor name -> (row_length,), the weight of each column

SUMS, COUNTS = ".in_sum2", ".counts"
MAX_NAME_BYTES = 4096


def read_imatrix(path: Path) -> dict[str, NDArray[np.float32]]:
    """GGUF tensor name -> (n_columns,) mean squared input of each column. Raises RecipeError where it is malformed."""
    try:
        with path.open("rb") as handle:
            is_gguf = handle.read(4) == MAGIC
        values = _read_gguf(path) if is_gguf else _read_legacy(path)
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror or error}", hint="--imatrix names a file that exists") from error
    for name, row in values.items():
        if not np.isfinite(row).all() or (row < 0).any():
            raise RecipeError(
                f"{path}: {name} holds a negative or non-finite weight",
                hint="make the imatrix again; the model may have overflowed on its text",
            )
    return values


def _read_gguf(path: Path) -> dict[str, NDArray[np.float32]]:
    header = read_header(path)
    arrays: dict[str, NDArray[np.float32]] = {}
    with path.open("rb") as handle:
        for tensor in header.tensors:
            if tensor.type.name != "F32":
                raise RecipeError(f"{path}: {tensor.name} is {tensor.type.name}, F32 was needed")
            handle.seek(header.data_start + tensor.offset)
            arrays[tensor.name] = np.frombuffer(handle.read(tensor.n_bytes), "<f4")
    names = [name.removesuffix(SUMS) for name in arrays if name.endswith(SUMS)]
    if not names:
        raise RecipeError(f"{path}: holds no *{SUMS} tensors, so it is no imatrix", hint="llama-imatrix makes one")
    return {name: _mean(path, name, arrays) for name in names}


def _mean(path: Path, name: str, arrays: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Sums over counts; a matrix that was never used weighs every column alike."""
    sums, counts = arrays[name + SUMS], arrays.get(name + COUNTS)
    if counts is None:
        raise RecipeError(f"{path}: {name} has sums and no counts")
    if counts.size != 1:
        raise RecipeError(f"{path}: {name} has {counts.size} experts; mixture-of-experts models are not supported")
    count = np.float32(np.rint(counts[0]))
    return sums / count if count > 0 else np.ones_like(sums)


def _read_legacy(path: Path) -> dict[str, NDArray[np.float32]]:
    n_file_bytes = path.stat().st_size
    result: dict[str, NDArray[np.float32]] = {}
    with path.open("rb") as handle:
        for _ in range(_int32(path, handle, 1, n_file_bytes)):
            name = _exactly(path, handle, _int32(path, handle, 1, MAX_NAME_BYTES)).decode("utf-8", "replace")
            n_calls = _int32(path, handle, -1, 1 << 31)
            values = np.frombuffer(_exactly(path, handle, 4 * _int32(path, handle, 1, n_file_bytes // 4)), "<f4")
            result[name] = (values / np.float32(max(n_calls, 1))).astype(np.float32, copy=False)
    return result


def _exactly(path: Path, handle: BinaryIO, n: int) -> bytes:
    raw = handle.read(n)
    if len(raw) != n:
        raise RecipeError(f"{path}: cut short at byte {handle.tell()}, or no imatrix file")
    return raw


def _int32(path: Path, handle: BinaryIO, smallest: int, largest: int) -> int:
    (value,) = struct.unpack("<i", _exactly(path, handle, 4))
    if not smallest <= value <= largest:
        raise RecipeError(
            f"{path}: a count of {value} at byte {handle.tell() - 4}, so it is no imatrix file",
            hint="llama-imatrix makes one",
        )
    return int(value)


def check_importance(
    recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], choices: Mapping[str, Choice], importance: Importance | None
) -> None:
    """Raise RecipeError naming tensors that lack importance data they cannot do without, or whose data misfits."""
    data = importance or {}
    lacking = [
        name for name, choice in choices.items() if lacks_imatrix(recipe, name, choice.type) and name not in data
    ]
    if lacking:
        shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
        raise RecipeError(
            f"{recipe.name} needs an importance matrix for {shown}",
            hint="--imatrix FILE, made by llama-imatrix on text of your domain",
        )
    for name, shape in shapes.items():
        if name in data and data[name].shape != shape[-1:]:
            raise RecipeError(
                f"imatrix: {name} has {data[name].size} columns, the tensor {shape[-1]}",
                hint="the imatrix was made for another model",
            )


def lacks_imatrix(recipe: Recipe, name: str, chosen: GgmlType) -> bool:
    """True if `name` at type `chosen` is garbage without importance weights. Source: tensor_requires_imatrix."""
    if category_of(name) in ("output", "embedding"):
        return False
    return chosen.name in IMATRIX_TYPES or (chosen.name == "Q2_K" and recipe.name == "Q2_K_S")
