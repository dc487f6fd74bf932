"""One worker of an ONNX conversion: reads a slab of rows and encodes it as the plan stores its tensor."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError
from quantize.onnx.blocks import LARGEST_WEIGHT, Blocks, decode_rows, encode_rows
from quantize.onnx.plan import FolderPlan, OnnxSlab, OnnxTensor
from quantize.source.checkpoint import RowReader
from quantize.stream.encode import VIEWS, RowErrors, Rows, to_float32

NO_ERRORS = RowErrors(0.0, 0.0, 0, 0.0)


@dataclass(frozen=True)
class EncodedPieces:
    """pieces: the slab's bytes in each of its tensor's pieces, in the plan's order."""

    pieces: list[NDArray[np.uint8]]
    errors: RowErrors


class OnnxSlabEncoder:
    """Owns the read buffer of one thread."""

    def __init__(self, plan: FolderPlan, reader: RowReader, *, measure: bool = True) -> None:
        self.plan, self.reader, self.measure = plan, reader, measure
        self.raw: NDArray[np.uint8] = np.empty(0, np.uint8)

    def encode(self, slab: OnnxSlab) -> EncodedPieces:
        """The slab's bytes. Raises CheckpointError naming tensor and row where a weight is not finite."""
        tensor = self.plan.tensors[slab.tensor]
        values = self.values(slab)
        self._check_finite(tensor, slab, values)
        if tensor.storage.blocks is None:
            stored = values.astype(np.float16 if tensor.storage.bits == 16 else np.float32)
            self._check_range(tensor, bool(np.isfinite(stored).all()))
            pieces, decoded = [stored], stored
        else:
            self._check_range(tensor, float(np.abs(values).max()) <= LARGEST_WEIGHT)
            blocks = encode_rows(values, tensor.storage.blocks)
            pieces = [part for part in (blocks.codes, blocks.scales, blocks.zero_points) if part is not None]
            decoded = decode_rows(blocks, tensor.storage.blocks, values.shape[1]) if self.measure else values
        flat = [np.ascontiguousarray(piece).view(np.uint8).reshape(-1) for piece in pieces]
        return EncodedPieces(flat, row_errors(values, decoded, slab.first_row) if self.measure else NO_ERRORS)

    def decode(self, slab: OnnxSlab, pieces: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The weights that a slab's bytes stand for, (n_rows, row_length)."""
        tensor = self.plan.tensors[slab.tensor]
        row_length = tensor.shape[-1]
        if tensor.storage.blocks is None:
            dtype = np.float16 if tensor.storage.bits == 16 else np.float32
            return pieces[0].view(dtype).astype(np.float32).reshape(slab.n_rows, row_length)
        codes, scales, *zeros = pieces
        blocks = Blocks(
            codes.reshape(slab.n_rows, -1),
            scales.view(np.float16).reshape(slab.n_rows, -1),
            zeros[0].reshape(slab.n_rows, -1) if zeros else None,
        )
        return decode_rows(blocks, tensor.storage.blocks, row_length)

    def values(self, slab: OnnxSlab) -> NDArray[np.float32]:
        """The slab's weights as float32, (n_rows, row_length), transformed."""
        tensor = self.plan.tensors[slab.tensor]
        if tensor.cache is not None:
            return tensor.cache.rows(slab.first_row, slab.n_rows)
        if tensor.array is not None:
            part = tensor.array.reshape(tensor.n_rows, -1)[slab.first_row : slab.first_row + slab.n_rows]
            return np.ascontiguousarray(part)
        assert tensor.tensor is not None
        assert tensor.tensor.source is not None
        source = tensor.tensor.source
        n_bytes = slab.n_rows * source.row_bytes
        if self.raw.nbytes < n_bytes:
            self.raw = np.empty(n_bytes, np.uint8)
        self.reader.read_into(source, slab.first_row, self.raw[:n_bytes].data)
        rows: NDArray[Any] = self.raw[:n_bytes].view(VIEWS[source.dtype]).reshape(slab.n_rows, source.row_length)
        wide = to_float32(Rows(source.dtype, rows))
        return tensor.transform.apply(wide, tensor.row_group)

    def _check_finite(self, tensor: OnnxTensor, slab: OnnxSlab, values: NDArray[np.float32]) -> None:
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            row = slab.first_row + int(np.argmin(finite))
            where = (
                f"{tensor.tensor.source.path}: {tensor.tensor.source.name}"
                if (tensor.tensor and tensor.tensor.source)
                else tensor.name
            )
            raise CheckpointError(
                f"{where} row {row} holds NaN or infinity",
                hint="the checkpoint is damaged; a quantizer would spread this over the whole block",
            )

    def _check_range(self, tensor: OnnxTensor, within: bool) -> None:
        if not within:
            raise CheckpointError(
                f"{tensor.name}: a weight is beyond float16's range, in which {tensor.storage.name} is stored",
                hint="--recipe fp32 --device cpu",
            )


def row_errors(values: NDArray[np.float32], decoded: NDArray[Any], first_row: int) -> RowErrors:
    """The errors of `decoded` against `values`, both (n_rows, row_length), in float64 sums a row."""
    difference = decoded.astype(np.float32) - values
    errors = np.einsum("ij,ij->i", difference, difference).astype(np.float64)
    weights = np.einsum("ij,ij->i", values, values).astype(np.float64)
    ratios = np.divide(errors, weights, out=np.zeros_like(errors), where=weights > 0)
    worst = int(ratios.argmax())
    return RowErrors(float(errors.sum()), float(weights.sum()), first_row + worst, float(ratios[worst]))
