"""Write planned GGUF files in one streaming pass over the checkpoint.

Every offset is known from the plan, so worker threads take slabs of rows in order, and each reads, converts,
quantizes and writes its slab with pread and pwrite. Memory is threads x one slab, whatever the model's size.
Several plans of one checkpoint share the read and the conversion to float32.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError, OutputError
from medlite.files import check_free_space, check_writable, part_path, publish
from medlite.gguf_format import GgmlType
from quantize import ggml
from quantize.checkpoint import RowReader, SourceTensor
from quantize.plan import PlannedTensor, QuantizationPlan

SLAB_WEIGHTS = 1 << 21       # 8 MB of float32 a thread
FREE_SPACE_MARGIN_BYTES = 1 << 20

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Output:
    """One plan and the file it becomes."""

    plan: QuantizationPlan
    path: Path


@dataclass(frozen=True)
class Slab:
    """Rows [first_row, first_row + n_rows) of one tensor; `index` is its place in every plan's `tensors`."""

    index: int
    first_row: int
    n_rows: int


def write_gguf(
    outputs: Sequence[Output], *, n_threads: int = 0, force: bool = False, on_bytes: OnBytes | None = None
) -> None:
    """Write every output, or none under its final name.

    outputs: plans of the same checkpoint. n_threads: 0 for all cores. on_bytes hears source bytes as they are done.
    Raises OutputError before the first byte if a file exists (unless force) or the disk is short, CheckpointError
    if a weight is not finite or a shard ends early.
    """
    _check_outputs(outputs, force=force)
    parts = [part_path(output.path) for output in outputs]
    try:
        with ExitStack() as stack:
            descriptors = [_create(stack, output, part) for output, part in zip(outputs, parts, strict=True)]
            _write_tensors(outputs, descriptors, n_threads or os.cpu_count() or 1, on_bytes or (lambda n: None))
        for output, part in zip(outputs, parts, strict=True):
            publish(part, output.path)
    except OSError as error:
        raise OutputError(f"{outputs[0].path.parent}: {error.strerror or error}",
                          hint="is the disk full or read-only?") from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _check_outputs(outputs: Sequence[Output], *, force: bool) -> None:
    for output in outputs:
        check_writable(output.path, force=force)
    for folder in {output.path.parent for output in outputs}:
        needed = sum(output.plan.n_bytes for output in outputs if output.path.parent == folder)
        check_free_space(folder, needed + FREE_SPACE_MARGIN_BYTES)


def _create(stack: ExitStack, output: Output, part: Path) -> int:
    """Open the .part file at its full size with the header written."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    stack.callback(os.close, descriptor)
    os.ftruncate(descriptor, output.plan.n_bytes)
    _pwrite(descriptor, output.plan.header, 0)
    return descriptor


def _pwrite(descriptor: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        n = os.pwrite(descriptor, view, position)
        view, position = view[n:], position + n


def _write_tensors(outputs: Sequence[Output], descriptors: Sequence[int], n_threads: int, on_bytes: OnBytes) -> None:
    """Run the slabs through worker threads; the first error or Ctrl-C stops them all."""
    checkpoint = outputs[0].plan.checkpoint
    slabs = _slabs(outputs[0].plan)
    lock, stop = threading.Lock(), threading.Event()

    def next_slab() -> Slab | None:
        with lock:
            return None if stop.is_set() else next(slabs, None)

    with RowReader() as reader, ThreadPoolExecutor(n_threads) as pool:
        reader.open(checkpoint.tensors)

        def work() -> None:
            encoder = SlabEncoder(reader)
            while (slab := next_slab()) is not None:
                n_bytes = encoder.write(slab, outputs, descriptors)
                with lock:
                    on_bytes(n_bytes)

        workers = [pool.submit(work) for _ in range(n_threads)]
        try:
            wait(workers, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
        for worker in workers:
            worker.result()


def _slabs(plan: QuantizationPlan) -> Iterator[Slab]:
    """The plan's tensors cut into slabs of about SLAB_WEIGHTS, never inside a transform's row group."""
    for index, tensor in enumerate(plan.tensors):
        if tensor.source is None:
            yield Slab(index, 0, 1)
            continue
        group = tensor.rule.transform.row_group(plan.checkpoint.config) if tensor.rule else 1
        step = max(SLAB_WEIGHTS // tensor.source.row_length // group, 1) * group
        for first in range(0, tensor.source.n_rows, step):
            yield Slab(index, first, min(step, tensor.source.n_rows - first))


class SlabEncoder:
    """One worker: reads a slab once, converts it to float32 once, quantizes and writes it for every output."""

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader
        self.raw: NDArray[np.uint8] = np.empty(0, np.uint8)

    def write(self, slab: Slab, outputs: Sequence[Output], descriptors: Sequence[int]) -> int:
        """Write `slab` into every output; returns the source bytes it took."""
        first = outputs[0].plan.tensors[slab.index]
        if first.extra is not None:
            rows = np.ascontiguousarray(first.extra.values, np.float32).reshape(1, -1)
            n_source_bytes = 0
        else:
            rows = self._read(outputs[0].plan, first, slab)
            n_source_bytes = slab.n_rows * (first.source.row_bytes if first.source else 0)
        done: dict[tuple[str, bool], NDArray[np.uint8]] = {}
        for output, descriptor in zip(outputs, descriptors, strict=True):
            info = output.plan.tensors[slab.index].info
            importance = (output.plan.importance or {}).get(info.name)
            key = (info.type.name, importance is None)
            if key not in done:
                done[key] = encode(info.type, rows, importance)
            position = len(output.plan.header) + info.offset + slab.first_row * info.type.row_bytes(rows.shape[1])
            _pwrite(descriptor, done[key].data, position)
        return n_source_bytes

    def _read(self, plan: QuantizationPlan, tensor: PlannedTensor, slab: Slab) -> NDArray[np.float32]:
        """The slab's rows as float32 (n_rows, row_length), transformed and checked to be finite."""
        source, rule = tensor.source, tensor.rule
        assert source is not None
        assert rule is not None
        n_bytes = slab.n_rows * source.row_bytes
        if self.raw.nbytes < n_bytes:
            self.raw = np.empty(n_bytes, np.uint8)
        self.reader.read_into(source, slab.first_row, self.raw.data[:n_bytes])
        rows = to_float32(self.raw[:n_bytes], source.dtype).reshape(slab.n_rows, source.row_length)
        _check_finite(rows, source, slab.first_row)
        return rule.transform.apply(rows, rule.transform.row_group(plan.checkpoint.config))


def to_float32(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """The little-endian weights in `raw` as float32, exactly. dtype: F32, F16 or BF16."""
    if dtype == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return raw.view("<f2").astype(np.float32)
    wide = raw.view("<u2").astype(np.uint32)
    np.left_shift(wide, 16, out=wide)
    return wide.view(np.float32)


def _check_finite(rows: NDArray[np.float32], source: SourceTensor, first_row: int) -> None:
    """Raise CheckpointError naming tensor and row of the first NaN or infinity."""
    finite = np.isfinite(rows)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise CheckpointError(
            f"{source.path}: {source.name} row {first_row + row} column {column} is {rows[row, column]}",
            hint="the checkpoint is damaged; a quantizer would spread this over the whole block")


def encode(
    ggml_type: GgmlType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """`rows` (n_rows, row_length) in `ggml_type`, as bytes. importance: (row_length,), the weight of each column."""
    if ggml_type.name == "F32":
        return np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
    out = np.empty(rows.shape[0] * ggml_type.row_bytes(rows.shape[1]), np.uint8)
    ggml.quantize_rows(ggml_type, np.ascontiguousarray(rows), out, importance)
    return out
