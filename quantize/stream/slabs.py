"""The work of a conversion cut into slabs of rows: small enough for memory, independent of each other.

A slab names rows of one tensor; every plan of the same checkpoint has the same slabs, so several recipes share the
read. `SlabEncoder` is one worker: it owns its buffers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError, RecipeError
from quantize.families.transforms import Array
from quantize.gguf.plan import PlannedTensor, QuantizationPlan
from quantize.source.checkpoint import RowReader
from quantize.stream.encode import VIEWS, NotFiniteRowError, RowErrors, Rows, encode, measure_errors, to_float32

SLAB_WEIGHTS = 1 << 20  # 4 MB as float32; the journal's grain, so a change starts conversions over


@dataclass(frozen=True)
class Slab:
    """Rows [first_row, first_row + n_rows) of the tensor at `tensor` in every plan; `number` counts from 0."""

    number: int
    tensor: int
    first_row: int
    n_rows: int


def slabs_of(plan: QuantizationPlan) -> Iterator[Slab]:
    """The plan's tensors in order, cut into about SLAB_WEIGHTS, never inside a transform's row group."""
    number = 0
    for index, tensor in enumerate(plan.tensors):
        row_length = tensor.info.shape[-1]
        n_rows = tensor.info.n_weights // row_length
        group = tensor.model.row_group
        step = max(SLAB_WEIGHTS // row_length // group, 1) * group
        for first in range(0, n_rows, step):
            yield Slab(number, index, first, min(step, n_rows - first))
            number += 1


@dataclass(frozen=True)
class EncodedSlab:
    """data: the slab in one plan's type. position: where it goes, in bytes from the start of the plan's `file`."""

    data: NDArray[np.uint8]
    file: int
    position: int
    errors: RowErrors


class SlabEncoder:
    """Reads a slab once and encodes it for several plans of the same checkpoint."""

    def __init__(self, reader: RowReader, *, measure: bool = True) -> None:
        self.reader, self.measure = reader, measure
        self.raw: NDArray[np.uint8] = np.empty(0, np.uint8)

    def encode(self, slab: Slab, plans: list[QuantizationPlan]) -> list[EncodedSlab]:
        """`slab` as each plan wants it. Raises CheckpointError naming tensor and row where a weight is not finite."""
        rows = self._rows(plans[0], plans[0].tensors[slab.tensor], slab)
        done: dict[tuple[str, bool], tuple[NDArray[np.uint8], RowErrors]] = {}
        result = []
        for plan in plans:
            tensor = plan.tensors[slab.tensor]
            importance = (plan.importance or {}).get(tensor.info.name)
            key = (tensor.info.type.name, importance is None)
            if key not in done:
                done[key] = self._encode_one(tensor, rows, importance, slab)
            data, errors = done[key]
            row_bytes = tensor.info.type.row_bytes(tensor.info.shape[-1])
            position = len(plan.files[tensor.file].header) + tensor.info.offset + slab.first_row * row_bytes
            result.append(EncodedSlab(data, tensor.file, position, errors))
        return result

    def measure_slab(self, slab: Slab, plan: QuantizationPlan, data: NDArray[np.uint8]) -> RowErrors:
        """The errors of `data`, a slab that something else encoded, against the source."""
        tensor = plan.tensors[slab.tensor]
        return measure_errors(tensor.info.type, self._rows(plan, tensor, slab), data)

    def _encode_one(
        self, tensor: PlannedTensor, rows: Rows, importance: NDArray[np.float32] | None, slab: Slab
    ) -> tuple[NDArray[np.uint8], RowErrors]:
        try:
            data = encode(tensor.info.type, rows, importance)
        except NotFiniteRowError as error:
            name = tensor.source.name if tensor.source else tensor.info.name
            where = tensor.source.path if tensor.source else "config.json"
            raise CheckpointError(
                f"{where}: {name} row {slab.first_row + error.row} holds NaN or infinity",
                hint="the checkpoint is damaged; a quantizer would spread this over the whole block",
            ) from error
        if tensor.info.type.name == "F16" and rows.dtype != "F16":
            _check_half_range(tensor, data, slab)
        if not self.measure:
            return data, RowErrors(0.0, 0.0, 0, 0.0)
        errors = measure_errors(tensor.info.type, rows, data)
        return data, RowErrors(
            errors.squared_error, errors.squared_weight, slab.first_row + errors.worst_row, errors.worst_ratio
        )

    def _rows(self, plan: QuantizationPlan, tensor: PlannedTensor, slab: Slab) -> Rows:
        """The slab's source rows, transformed, in the source's dtype where the transform only moves values."""
        source, transform = tensor.source, tensor.model.transform
        if source is None:
            assert tensor.model.values is not None
            return Rows("F32", np.ascontiguousarray(tensor.model.values, np.float32).reshape(1, -1))
        n_bytes = slab.n_rows * source.row_bytes
        if self.raw.nbytes < n_bytes:
            self.raw = np.empty(n_bytes, np.uint8)
        self.reader.read_into(source, slab.first_row, self.raw[:n_bytes].data)
        values: Array = self.raw[:n_bytes].view(VIEWS[source.dtype])
        rows = Rows(source.dtype, values.reshape(slab.n_rows, source.row_length))
        if not transform.moves_only:
            rows = Rows("F32", to_float32(rows))
        return Rows(rows.dtype, transform.apply(rows.values, tensor.model.row_group))


def _check_half_range(tensor: PlannedTensor, data: NDArray[np.uint8], slab: Slab) -> None:
    """Raise RecipeError naming the row of the first weight that float16 cannot hold (it would become infinite)."""
    infinite = np.isinf(data.view(np.float16)).reshape(slab.n_rows, -1).any(axis=1)
    if infinite.any():
        raise RecipeError(
            f"{tensor.info.name} row {slab.first_row + int(infinite.argmax())} holds a weight beyond "
            "65504, the largest in F16",
            hint="--recipe BF16 holds every weight",
        )
