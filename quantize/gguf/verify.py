"""Check an artifact: its structure, its numbers, its receipt, and (if given) the checkpoint it was made from.

With a receipt every single changed byte is found, because every byte is covered by a hash: the header by its own,
each tensor by its own, the padding by the file's. Without one (a file made elsewhere) structure, ranges and
impossible numbers are checked.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medlite.errors import ArtifactError, CheckpointError
from medlite.files import file_sha256
from medlite.formats.gguf import GGML_TYPES, Header, TensorInfo, read_header
from medlite.formats.receipt import GgufReceipt, read_gguf_receipt, receipt_path
from quantize.gguf.plan import Importance, QuantizationPlan, plan_gguf
from quantize.gguf.receipt import range_sha256, sqnr_db
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import Checkpoint, RowReader
from quantize.stream import ggml
from quantize.stream.slabs import SLAB_WEIGHTS, SlabEncoder, slabs_of

OnBytes = Callable[[int], None]

# A tensor further from its source than this is not a quantization of it. The worst honest type, IQ1_S, keeps about
# 5 dB on normal weights; a swapped or permuted tensor is below 0 dB.
WRONG_TENSOR_DB = 2.0


@dataclass(frozen=True)
class Comparison:
    """One tensor against the source. identical: equal to what medlite would write. sqnr_db: None for no loss."""

    name: str
    type: str
    identical: bool
    sqnr_db: float | None


@dataclass(frozen=True)
class Verification:
    """problems: what is wrong, one line each, empty for a sound artifact. checked: what was looked at."""

    path: Path
    checked: tuple[str, ...]
    problems: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    path: Path,
    *,
    against: Checkpoint | None = None,
    importance: Importance | None = None,
    on_bytes: OnBytes = lambda n: None,
) -> Verification:
    """The findings on the artifact at `path`. Never raises for a damaged file: what is wrong is in `problems`.

    on_bytes hears bytes as they are checked (once over the tensors, once more with a receipt).
    """
    receipt_file = receipt_path(path)
    try:
        receipt = read_gguf_receipt(path) if receipt_file.exists() else None
        paths = [path.with_name(row.name) for row in receipt.files] if receipt else [path]
        headers = [read_header(one) for one in paths]
    except ArtifactError as error:
        return Verification(path, ("structure",), (str(error),))
    checked, problems = ["structure", "numbers"], []
    for one, header in zip(paths, headers, strict=True):
        problems += _impossible_numbers(one, header, on_bytes)
    if receipt is not None:
        checked.append(f"receipt {receipt_file.name}")
        problems += _against_receipt(paths, headers, receipt, on_bytes)
    comparisons: tuple[Comparison, ...] = ()
    if against is not None:
        checked.append(f"source {against.folder}")
        comparisons, differing = _against_source(paths, headers, against, importance)
        problems += differing
    return Verification(path, tuple(checked), tuple(problems), comparisons)


def _impossible_numbers(path: Path, header: Header, on_bytes: OnBytes) -> list[str]:
    """Tensors in which ggml finds NaN, infinity or an impossible scale."""
    problems = []
    with path.open("rb", buffering=0) as handle:
        for tensor in header.tensors:
            if tensor.type.name in ("I8", "I16", "I32", "I64", "F64"):
                continue
            row_bytes = tensor.type.row_bytes(tensor.shape[-1])
            step = max(SLAB_WEIGHTS // tensor.shape[-1], 1) * row_bytes
            for start in range(0, tensor.n_bytes, step):
                handle.seek(header.data_start + tensor.offset + start)
                data = np.frombuffer(handle.read(min(step, tensor.n_bytes - start)), np.uint8)
                on_bytes(data.nbytes)
                if not ggml.rows_are_valid(tensor.type, data):
                    first = start // row_bytes
                    problems.append(
                        f"{path}: {tensor.name} ({tensor.type.name}) holds NaN, infinity or an impossible "
                        f"scale in rows {first} to {first + data.nbytes // row_bytes - 1}"
                    )
                    break
    return problems


def _against_receipt(
    paths: Sequence[Path], headers: Sequence[Header], receipt: GgufReceipt, on_bytes: OnBytes
) -> list[str]:
    """What differs from the receipt; where only padding differs, the file's own hash tells."""
    problems: list[str] = []
    rows = {row.name: row for row in receipt.tensors}
    found = {tensor.name: (i, tensor) for i, header in enumerate(headers) for tensor in header.tensors}
    problems += [f"{paths[0]}: tensor {name} is missing, the receipt has it" for name in rows if name not in found]
    problems += [f"{paths[0]}: tensor {name} is not in the receipt" for name in found if name not in rows]
    for name, (i, tensor) in found.items():
        if name not in rows:
            continue
        row = rows[name]
        if (tensor.type.name, tensor.shape, tensor.n_bytes, i) != (row.type, row.shape, row.n_bytes, row.file):
            problems.append(
                f"{paths[i]}: {name} is {tensor.type.name} {tensor.shape}, the receipt says {row.type} {row.shape}"
            )
        elif range_sha256(paths[i], headers[i].data_start + tensor.offset, tensor.n_bytes, on_bytes) != row.sha256:
            problems.append(f"{paths[i]}: {name} has changed since it was written (SHA-256 differs)")
    for path, header, file in zip(paths, headers, receipt.files, strict=True):
        if header.n_file_bytes != file.n_bytes:
            problems.append(f"{path}: {header.n_file_bytes} bytes, the receipt says {file.n_bytes}")
        with path.open("rb") as handle:
            if hashlib.sha256(handle.read(file.n_header_bytes)).hexdigest() != file.header_sha256:
                problems.append(f"{path}: the metadata has changed since it was written (SHA-256 differs)")
        if not problems and file_sha256(path) != file.sha256:
            problems.append(f"{path}: the padding between tensors has changed (the file's SHA-256 differs)")
    return problems


def _against_source(
    paths: Sequence[Path], headers: Sequence[Header], checkpoint: Checkpoint, importance: Importance | None
) -> tuple[tuple[Comparison, ...], list[str]]:
    """Each tensor encoded again from the source at the type it has here, and compared."""
    types = {tensor.name: tensor.type.name for header in headers for tensor in header.tensors}
    try:
        plan = _plan_with_types(checkpoint, types, importance)
    except CheckpointError as error:
        return (), [str(error)]
    located = {
        tensor.name: (path, header, tensor)
        for path, header in zip(paths, headers, strict=True)
        for tensor in header.tensors
    }
    missing = [tensor.info.name for tensor in plan.tensors if tensor.info.name not in located]
    problems = [f"{paths[0]}: tensor {name} is missing, the source has it" for name in missing]
    extra = located.keys() - {tensor.info.name for tensor in plan.tensors}
    problems += [f"{paths[0]}: tensor {name} is not in the source" for name in sorted(extra)]
    comparisons = []
    for one in _compare_tensors(plan, located):
        comparisons.append(one)
        if one.sqnr_db is not None and one.sqnr_db < WRONG_TENSOR_DB:
            problems.append(f"{paths[0]}: {one.name} is not the source's tensor: SQNR {one.sqnr_db:.1f} dB")
    return tuple(comparisons), problems


def _plan_with_types(
    checkpoint: Checkpoint, types: Mapping[str, str], importance: Importance | None
) -> QuantizationPlan:
    """A plan whose tensors have the types that the file has; its offsets mean nothing."""
    plan = plan_gguf(match_checkpoint(checkpoint), RECIPES["BF16"])
    tensors = tuple(
        replace(tensor, info=replace(tensor.info, type=GGML_TYPES[types[tensor.info.name]]))
        if tensor.info.name in types
        else tensor
        for tensor in plan.tensors
    )
    return replace(plan, tensors=tensors, importance=importance)


def _compare_tensors(plan: QuantizationPlan, located: dict[str, tuple[Path, Header, TensorInfo]]) -> list[Comparison]:
    """Compare every tensor of the plan that the files hold, slab by slab."""
    sums: dict[int, list[float]] = {}
    identical: dict[int, bool] = {}
    with RowReader() as reader:
        reader.open(plan.checkpoint.tensors)
        encoder = SlabEncoder(reader)
        for slab in slabs_of(plan):
            info = plan.tensors[slab.tensor].info
            if info.name not in located or located[info.name][2].shape != info.shape:
                continue
            path, header, tensor = located[info.name]
            row_bytes = tensor.type.row_bytes(tensor.shape[-1])
            start = header.data_start + tensor.offset + slab.first_row * row_bytes
            data = _read(path, start, slab.n_rows * row_bytes)
            wanted = encoder.encode(slab, [plan])[0]
            same = data.tobytes() == wanted.data.tobytes()
            errors = wanted.errors if same else encoder.measure_slab(slab, plan, data)
            total = sums.setdefault(slab.tensor, [0.0, 0.0])
            total[0] += errors.squared_weight
            total[1] += errors.squared_error
            identical[slab.tensor] = identical.get(slab.tensor, True) and same
    return [
        Comparison(plan.tensors[i].info.name, plan.tensors[i].info.type.name, identical[i], sqnr_db(*total))
        for i, total in sums.items()
    ]


def _read(path: Path, start: int, n_bytes: int) -> NDArray[np.uint8]:
    with path.open("rb", buffering=0) as handle:
        handle.seek(start)
        return np.frombuffer(handle.read(n_bytes), np.uint8)
