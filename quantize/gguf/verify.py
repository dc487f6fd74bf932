"""Check an artifact: its structure, its numbers, its receipt, and (if given) the checkpoint it was made from.

With a receipt every single changed byte is found, because every byte is covered by a hash: the header by its own,
each tensor by its own, the padding by the file's. Without one (a file made elsewhere) structure, ranges and
impossible numbers are checked.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medlite.errors import ArtifactError, CheckpointError
from medlite.files import OnBytes, file_sha256
from medlite.formats.gguf import Header, read_header
from medlite.formats.receipt import GgufReceipt, part_paths, read_gguf_receipt, receipt_path
from quantize.gguf.imatrix import Importance
from quantize.match import match_checkpoint
from quantize.source.checkpoint import Checkpoint
from quantize.stream import ggml
from quantize.stream.compare import Comparison, Verification, compare_tensors, range_sha256, wrong_tensors
from quantize.stream.encode import GgmlEncoding
from quantize.stream.plan import Part, planned_tensor
from quantize.stream.slabs import SLAB_WEIGHTS


def verify_gguf(
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
        paths = part_paths(path, len(receipt.files)) if receipt else (path,)
        headers = [read_header(one) for one in paths]
    except ArtifactError as error:
        return Verification(path, ("structure",), (str(error),))
    if path not in paths and path.exists():
        return Verification(path, ("structure",), (f"{path}: not one of the {len(paths)} files of its receipt",))
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
    try:
        model = match_checkpoint(checkpoint)
    except CheckpointError as error:
        return (), [str(error)]
    located = {info.name: (info, i, header.data_start) for i, header in enumerate(headers) for info in header.tensors}
    problems, tensors = [], []
    for tensor in model.tensors:
        if tensor.name not in located:
            problems.append(f"{paths[0]}: tensor {tensor.name} is missing, the source has it")
            continue
        info, file, data_start = located.pop(tensor.name)
        if info.shape == tensor.shape:
            encoding = GgmlEncoding(info.type, (importance or {}).get(tensor.name))
            part = Part.of_tensor(info, file, data_start)
            tensors.append(planned_tensor(tensor, encoding, (part,), "as the file has it"))
        else:
            problems.append(f"{paths[file]}: {tensor.name} has shape {info.shape}, in the source {tensor.shape}")
    problems += [f"{paths[0]}: tensor {name} is not in the source" for name in sorted(located)]
    comparisons = tuple(compare_tensors(checkpoint, tensors, paths))
    return comparisons, problems + wrong_tensors(paths[0], comparisons)
