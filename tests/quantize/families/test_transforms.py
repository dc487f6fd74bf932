"""What happens to a tensor's values on the way to ggml's layout, slab by slab."""

import numpy as np
import pytest

from medlite.errors import CheckpointError
from quantize.families.transforms import ADD_ONE, KEEP, PERMUTE_ROPE, Transform


def test_rotary_halves_are_interleaved() -> None:
    """A head's rows 0..3 | 4..7 rotate in pairs (0, 4), (1, 5) ...; ggml wants the pairs side by side."""
    rows = np.arange(16, dtype=np.float16)[:, None]
    assert PERMUTE_ROPE.apply(rows, 8)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


@pytest.mark.parametrize("transform", [KEEP, PERMUTE_ROPE, ADD_ONE], ids=lambda transform: transform.name)
def test_slabs_of_whole_groups_give_the_whole_tensor(transform: Transform) -> None:
    rows = np.random.default_rng(2).normal(size=(32, 3)).astype(np.float32)
    parts = [transform.apply(rows[first : first + 8], 8) for first in range(0, 32, 8)]
    whole = transform.apply(rows, 8)
    assert np.array_equal(np.concatenate(parts), whole)
    assert (whole.shape, whole.dtype) == (rows.shape, rows.dtype)


def test_a_transform_that_only_moves_keeps_every_bit() -> None:
    """NaN payloads and signed zeros included, in any dtype."""
    rows = np.arange(1 << 16, dtype=np.uint16).reshape(64, -1)
    assert sorted(PERMUTE_ROPE.apply(rows, 16).tobytes()) == sorted(rows.tobytes())
    assert not ADD_ONE.moves_only


@pytest.mark.parametrize(("n_rows", "rows_per_head"), [(12, 8), (9, 3)])
def test_rows_that_are_no_even_heads_are_refused(n_rows: int, rows_per_head: int) -> None:
    with pytest.raises(CheckpointError, match=f"{n_rows} rows do not divide into heads of {rows_per_head}"):
        PERMUTE_ROPE.apply(np.zeros((n_rows, 2), np.float32), rows_per_head)
