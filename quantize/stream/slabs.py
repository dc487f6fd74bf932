"""The work of a conversion cut into slabs of rows: small enough for memory, independent of each other.

A slab names rows of one tensor; every plan of the same checkpoint in the same format has the same slabs, so several
recipes share the read. `SlabEncoder` is one worker: it owns its buffers.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError, NotFiniteError
from quantize.source.checkpoint import RowReader
from quantize.stream.encode import NO_ERRORS, VIEWS, Bytes, Encoding, RowErrors, Rows, to_float32
from quantize.stream.plan import PlannedTensor

SLAB_WEIGHTS = 1 << 20  # 4 MB as float32; the journal's grain, so a change starts conversions over


@dataclass(frozen=True)
class Slab:
    """Rows [first_row, first_row + n_rows) of the tensor at `tensor` in every plan; `number` counts from 0."""

    number: int
    tensor: int
    first_row: int
    n_rows: int


@dataclass(frozen=True)
class Place:
    """n_bytes from byte `position` of the plan's file number `file` on."""

    file: int
    position: int
    n_bytes: int


def slabs_of(tensors: Sequence[PlannedTensor]) -> Iterator[Slab]:
    """The tensors in order, cut into about SLAB_WEIGHTS, never inside a transform's row group."""
    number = 0
    for index, tensor in enumerate(tensors):
        step = max(SLAB_WEIGHTS // tensor.shape[-1] // tensor.row_group, 1) * tensor.row_group
        for first in range(0, tensor.n_rows, step):
            yield Slab(number, index, first, min(step, tensor.n_rows - first))
            number += 1


def places_of(slab: Slab, tensor: PlannedTensor) -> list[Place]:
    """Where the slab's bytes lie in the output, one place a part of its tensor."""
    return [
        Place(part.file, part.offset + slab.first_row * part.row_bytes, slab.n_rows * part.row_bytes)
        for part in tensor.parts
    ]


@dataclass(frozen=True)
class EncodedSlab:
    """parts: the slab's bytes in each part of its tensor. errors: NO_ERRORS where they were not measured."""

    parts: list[Bytes]
    errors: RowErrors


class SlabEncoder:
    """Reads a slab once and encodes it for several plans of the same checkpoint."""

    def __init__(self, reader: RowReader, *, measure: bool = True) -> None:
        self.reader, self.measure = reader, measure
        self.raw: NDArray[np.uint8] = np.empty(0, np.uint8)

    def encode(self, slab: Slab, tensors: Sequence[PlannedTensor]) -> list[EncodedSlab]:
        """`slab` as each plan's own row of `tensors` stores it: one tensor of the source, in several encodings.

        Raises CheckpointError naming tensor and row where a weight is not finite.
        """
        rows = self.rows(slab, tensors[0])
        done: dict[Hashable, EncodedSlab] = {}
        for tensor in tensors:
            if tensor.encoding.key not in done:
                done[tensor.encoding.key] = self._encode_one(tensor, rows)
        return [done[tensor.encoding.key] for tensor in tensors]

    def measure_slab(self, slab: Slab, tensor: PlannedTensor, parts: Sequence[Bytes]) -> RowErrors:
        """The errors of `parts`, a slab that something else encoded, against the source."""
        return _measured(tensor.encoding, self.rows(slab, tensor), parts)

    def rows(self, slab: Slab, tensor: PlannedTensor) -> Rows:
        """The slab's values, transformed, in the source's dtype where the transform only moves them.

        They lie in this worker's buffer: the next slab overwrites them.
        """
        source, transform = tensor.source, tensor.transform
        if source is None:
            if tensor.stated is None:
                raise CheckpointError(f"{tensor.name}: neither the checkpoint nor its config holds its values")
            return Rows("F32", tensor.stated(slab.first_row, slab.n_rows), tensor.name, slab.first_row)
        n_bytes = slab.n_rows * source.row_bytes
        if self.raw.nbytes < n_bytes:
            self.raw = np.empty(n_bytes, np.uint8)
        self.reader.read_into(source, slab.first_row, self.raw[:n_bytes].data)
        values = self.raw[:n_bytes].view(VIEWS[source.dtype]).reshape(slab.n_rows, source.row_length)
        rows = Rows(source.dtype, values, tensor.name, slab.first_row)
        if not transform.moves_only:
            rows = replace(rows, dtype="F32", values=to_float32(rows))
        return replace(rows, values=transform.apply(rows.values, tensor.row_group))

    def _encode_one(self, tensor: PlannedTensor, rows: Rows) -> EncodedSlab:
        try:
            parts = tensor.encoding.encode(rows)
        except NotFiniteError as error:
            name = f"{tensor.source.path}: {tensor.source.name}" if tensor.source else tensor.name
            raise CheckpointError(
                f"{name} row {rows.first_row + error.row} holds NaN or infinity",
                hint="the checkpoint is damaged; a quantizer would spread this over the whole block",
            ) from error
        return EncodedSlab(parts, _measured(tensor.encoding, rows, parts) if self.measure else NO_ERRORS)


def _measured(encoding: Encoding, rows: Rows, parts: Sequence[Bytes]) -> RowErrors:
    """The errors of a slab; its worst row counts from the tensor's first."""
    errors = encoding.measure(rows, parts)
    return replace(errors, worst_row=rows.first_row + errors.worst_row)
