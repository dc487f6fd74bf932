"""How a source tensor's values become the target layout. Pure functions on a slab of whole rows.

A transform only sees a slab whose row count is a multiple of its `row_group`, so it can work in bounded memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError
from quantize.families.config import Config, head_dim

Array = NDArray[Any]


@dataclass(frozen=True)
class Transform:
    """apply: slab (rows, row_length) and rows a group -> slab of the same shape.

    row_group: how many rows belong together, from the config. moves_only: values keep their bits, so the slab comes
    in the source's dtype; else it comes as float32.
    """

    name: str
    apply: Callable[[Array, int], Array]
    row_group: Callable[[Config], int] = lambda config: 1
    moves_only: bool = True


def permute_rope(slab: Array, rows_per_head: int) -> Array:
    """Reorder Q or K rows from the half-split rotary layout to ggml's interleaved one.

    slab: (heads * rows_per_head, n_embd), rows_per_head even. Same shape and dtype back; values only move.
    Raises CheckpointError if the rows do not divide into heads of even size.
    Source: llama.cpp conversion/llama.py, LlamaModel.permute (there for a whole tensor; heads are independent).
    """
    if rows_per_head % 2 or slab.shape[0] % rows_per_head:
        raise CheckpointError(f"{slab.shape[0]} rows do not divide into heads of {rows_per_head} (an even number)")
    halves = slab.reshape(-1, 2, rows_per_head // 2, *slab.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(slab.shape)


def add_one(slab: Array, rows_per_group: int) -> Array:
    """`slab` plus one, in float32: Gemma multiplies by 1 + weight, ggml by the weight.

    Source: llama.cpp conversion/gemma.py, Gemma3Model.norm_shift.
    """
    return slab + np.float32(1.0)


KEEP = Transform("keep", lambda slab, rows_per_group: slab)
PERMUTE_ROPE = Transform("permute_rope", permute_rope, row_group=head_dim)
ADD_ONE = Transform("add_one", add_one, moves_only=False)
