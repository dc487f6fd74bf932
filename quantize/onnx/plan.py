"""The whole ONNX folder, decided from headers before a byte is written: as quantize.gguf.plan, for the other format.

It gives each tensor of the matched model its storage and its places in the one external data file.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError, RecipeError
from medlite.formats.gguf import pad_to
from quantize.families.rope import RotaryTable
from quantize.families.transforms import KEEP, PERMUTE_ROPE, Transform
from quantize.match import ModelTensor, SourceModel, match_checkpoint
from quantize.onnx.decoder import Decoder, read_decoder
from quantize.onnx.recipes import OnnxRecipe, Storage, choose_storage
from quantize.source.checkpoint import Checkpoint
from quantize.stream.slabs import SLAB_WEIGHTS

DEVICES = ("cpu", "cuda")
SMALL_ALIGNMENT = 64  # MLAS reads whole cache lines
PAGE_ALIGNMENT = 4096  # a large tensor that begins a page can be mapped without a copy
PAGE_ALIGNED_FROM_BYTES = 1 << 20

ITEM_BYTES = {"uint8": 1, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Piece:
    """One initializer in the data file. dtype: a key of ITEM_BYTES. n_rows: equal parts that slabs are made of."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_rows: int
    offset: int

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        return self.n_bytes // self.n_rows


@dataclass(frozen=True)
class RotaryCache:
    """A tensor that the config states: the cosines or sines of a rotary table."""

    table: RotaryTable
    function: str  # "cos" or "sin"

    def rows(self, first: int, n: int) -> NDArray[np.float32]:
        return self.table.rows(first, n, {"cos": np.cos, "sin": np.sin}[self.function])


@dataclass(frozen=True)
class OnnxTensor:
    """One tensor of the model: where its values come from, how they are stored, and where.

    tensor: the model's, None for a rotary cache. array: its values, where another exporter's graph holds them.
    shape: (n_rows, row_length), or (row_length,).
    """

    name: str
    shape: tuple[int, ...]
    storage: Storage
    pieces: tuple[Piece, ...]
    tensor: ModelTensor | None = None
    cache: RotaryCache | None = None
    array: NDArray[np.float32] | None = field(default=None, compare=False)

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return sum(piece.n_bytes for piece in self.pieces)

    @property
    def transform(self) -> Transform:
        """What the values need. The graph rotates halves as the source does, so Q and K rows stay in order."""
        return KEEP if self.tensor is None or self.tensor.transform is PERMUTE_ROPE else self.tensor.transform

    @property
    def row_group(self) -> int:
        return 1 if self.tensor is None or self.transform is KEEP else self.tensor.row_group


class FolderPlan(Protocol):
    """What writing and receipts need of an ONNX folder to come, whoever made its graph. made_by: package -> version."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def architecture(self) -> str: ...
    @property
    def recipe(self) -> OnnxRecipe: ...
    @property
    def block(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def tensors(self) -> tuple[OnnxTensor, ...]: ...
    @property
    def n_data_bytes(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def n_params(self) -> int: ...
    @property
    def bits_per_weight(self) -> float: ...
    @property
    def graph(self) -> bytes: ...
    @property
    def ignored(self) -> Mapping[str, str]: ...
    @property
    def made_by(self) -> Mapping[str, str]: ...
    def companions(self) -> Mapping[str, Path | dict[str, Any]]: ...


@dataclass(frozen=True)
class OnnxPlan:
    """Everything about one ONNX folder."""

    model: SourceModel
    decoder: Decoder
    recipe: OnnxRecipe
    block: int
    device: str
    tensors: tuple[OnnxTensor, ...]
    n_data_bytes: int

    @property
    def checkpoint(self) -> Checkpoint:
        return self.model.checkpoint

    @property
    def architecture(self) -> str:
        return self.decoder.family

    @property
    def float_name(self) -> str:
        """What activations are: float16 on CUDA, whose attention takes nothing wider; float32 on the CPU."""
        return "float16" if self.device == "cuda" else "float32"

    @cached_property
    def graph(self) -> bytes:
        """The bytes of model.onnx."""
        from quantize.onnx.graph import build_graph

        return build_graph(self)

    @property
    def ignored(self) -> Mapping[str, str]:
        return self.model.ignored

    @property
    def made_by(self) -> Mapping[str, str]:
        return {"onnx": metadata.version("onnx")}

    def companions(self) -> Mapping[str, Path | dict[str, Any]]:
        """The small files beside the weights. Raises CheckpointError without a tokenizer.json."""
        from quantize.onnx.config import companion_files

        return companion_files(self)

    @property
    def n_bytes(self) -> int:
        """Bytes of the graph and its weights; the tokenizer's files come on top."""
        return len(self.graph) + self.n_data_bytes

    @property
    def n_params(self) -> int:
        return sum(tensor.n_weights for tensor in self.tensors if tensor.cache is None)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(tensor.n_bytes for tensor in self.tensors if tensor.cache is None) / self.n_params


def make_onnx_plan(checkpoint: Checkpoint, recipe: OnnxRecipe, *, block: int, device: str = "cpu") -> OnnxPlan:
    """As `plan_onnx`, of a checkpoint that is not matched yet."""
    return plan_onnx(match_checkpoint(checkpoint), recipe, block=block, device=device)


def plan_onnx(model: SourceModel, recipe: OnnxRecipe, *, block: int, device: str = "cpu") -> OnnxPlan:
    """The plan for one recipe, from headers only.

    Raises CheckpointError as quantize.match does and where the graph cannot express the model, RecipeError where the
    block does not fit.
    """
    if device not in DEVICES:
        raise RecipeError(f"--device {device}: unknown", hint=f"one of {', '.join(DEVICES)}")
    decoder = read_decoder(model)
    if device == "cuda" and not decoder.arithmetic.fits_float16:
        raise CheckpointError(
            f"config.json: {model.family.hf_name} leaves the range of float16, which a CUDA graph computes in",
            hint="--device cpu, or --format gguf, which runs it on CUDA",
        )
    floats = 16 if device == "cuda" else 32
    tensors: list[OnnxTensor] = []
    end = 0
    for tensor in model.tensors:
        if not tensor.is_parameter:  # rotary factors: they are in the caches
            continue
        name, shape = tensor.name, tensor.shape
        storage = choose_storage(recipe, block, name, shape)
        if storage.blocks is None and len(shape) < 2:
            storage = Storage(floats, None, storage.reason)
        pieces, end = place(name, shape, storage, end)
        tensors.append(OnnxTensor(name, shape, storage, pieces, tensor=tensor))
    for name, cache in _caches(decoder):
        shape = (cache.table.n_rows(decoder.n_context), decoder.head_dim // 2)
        storage = Storage(floats, None, "computed from the config")
        pieces, end = place(name, shape, storage, end)
        tensors.append(OnnxTensor(name, shape, storage, pieces, cache=cache))
    return OnnxPlan(model, decoder, recipe, block, device, tuple(tensors), end)


def _caches(decoder: Decoder) -> Iterator[tuple[str, RotaryCache]]:
    for number, table in enumerate(decoder.tables):
        for function in ("cos", "sin"):
            yield f"rope.{number}.{function}", RotaryCache(table, function)


def place(name: str, shape: tuple[int, ...], storage: Storage, end: int) -> tuple[tuple[Piece, ...], int]:
    """The pieces of a tensor from byte `end` of the data file on, and where they end."""
    n_rows, row_length = math.prod(shape[:-1]), shape[-1]
    layout = storage.blocks
    if layout is None:
        parts = [(name, f"float{storage.bits}", shape)]
    else:
        parts = [
            (name, "uint8", (n_rows, layout.code_bytes(row_length))),
            (f"{name}.scales", "float16", (n_rows, layout.n_blocks(row_length))),
        ]
        if not layout.symmetric:
            parts.append((f"{name}.zero_points", "uint8", (n_rows, layout.zero_point_bytes(row_length))))
    pieces = []
    for piece_name, dtype, piece_shape in parts:
        n_bytes = math.prod(piece_shape) * ITEM_BYTES[dtype]
        end = pad_to(end, PAGE_ALIGNMENT if n_bytes >= PAGE_ALIGNED_FROM_BYTES else SMALL_ALIGNMENT)
        pieces.append(Piece(piece_name, dtype, piece_shape, n_rows, end))
        end += n_bytes
    return tuple(pieces), end


@dataclass(frozen=True)
class OnnxSlab:
    """Rows [first_row, first_row + n_rows) of the tensor at `tensor` in the plan; `number` counts from 0."""

    number: int
    tensor: int
    first_row: int
    n_rows: int


def slabs_of(plan: FolderPlan) -> Iterator[OnnxSlab]:
    """The plan's tensors in order, cut into about SLAB_WEIGHTS weights, never inside a transform's row group."""
    number = 0
    for index, tensor in enumerate(plan.tensors):
        step = max(SLAB_WEIGHTS // tensor.shape[-1] // tensor.row_group, 1) * tensor.row_group
        for first in range(0, tensor.n_rows, step):
            yield OnnxSlab(number, index, first, min(step, tensor.n_rows - first))
            number += 1
