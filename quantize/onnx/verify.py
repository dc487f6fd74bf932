"""Check an ONNX folder: its structure, its numbers, its receipt, and (if given) the checkpoint it was made from.

With a receipt every changed byte is found, because every file is covered by a hash; the tensors' own hashes say
where. The graph's external tensors must lie inside the data file, whoever made it.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medlite.errors import ArtifactError, MedliteError, MissingExtraError
from medlite.files import OnBytes, file_sha256
from medlite.formats.onnx_folder import DATA_NAME, MODEL_NAME, folder_bytes, read_onnx_facts
from medlite.formats.receipt import ONNX_RECEIPT_NAME, OnnxReceipt, read_onnx_receipt
from quantize.match import match_checkpoint
from quantize.onnx.graph import import_onnx
from quantize.onnx.plan import plan_onnx
from quantize.onnx.recipes import find_onnx_recipe
from quantize.onnx.storage import GRAPH_FILE
from quantize.source.checkpoint import Checkpoint
from quantize.stream.compare import READ_BYTES, Comparison, Verification, compare_tensors, range_sha256, wrong_tensors


def verify_onnx(folder: Path, *, against: Checkpoint | None = None, on_bytes: OnBytes = lambda n: None) -> Verification:
    """The findings on the ONNX folder. Never raises for damaged files: what is wrong is in `problems`."""
    try:
        facts = read_onnx_facts(folder)
        folder_bytes(folder, facts)
        external = list(external_tensors(folder))
        receipt = read_onnx_receipt(folder) if (folder / ONNX_RECEIPT_NAME).exists() else None
    except MissingExtraError:
        raise
    except MedliteError as error:
        return Verification(folder, ("structure",), (str(error),))
    checked, problems = ["structure", "numbers"], list(_impossible_numbers(folder, external, on_bytes))
    if receipt is not None:
        checked.append(f"receipt {ONNX_RECEIPT_NAME}")
        problems += _against_receipt(folder, receipt, on_bytes)
    comparisons: tuple[Comparison, ...] = ()
    if against is not None:
        checked.append(f"source {against.folder}")
        if facts.shared_cache:
            comparisons, differing = _against_source(folder, against, facts.recipe, facts.block, facts.device)
        else:
            differing = list(_against_hashes(folder, against, receipt))
        problems += differing
    return Verification(folder, tuple(checked), tuple(problems), comparisons)


def external_tensors(folder: Path) -> Iterator[tuple[str, str, int, int]]:
    """Name, dtype, offset and bytes of each tensor in the data file.

    Raises ArtifactError where the graph cannot be read, or a tensor leaves the data file or names another.
    """
    onnx = import_onnx()
    damage = importlib.import_module("google.protobuf.message").DecodeError
    path = folder / MODEL_NAME
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (OSError, damage, ValueError) as error:
        raise ArtifactError(f"{path}: {error}", hint="the graph is damaged; make the folder again") from error
    n_file_bytes = (folder / DATA_NAME).stat().st_size
    names = {onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.FLOAT: "float32"}
    if not graph.node:
        raise ArtifactError(f"{path}: holds no operators", hint="the graph is damaged; make the folder again")
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        stated = {entry.key: entry.value for entry in tensor.external_data}
        dtype, n_weights = names.get(tensor.data_type), int(np.prod([int(n) for n in tensor.dims], dtype=object))
        place = [stated.get("offset", "0"), stated.get("length", "0")]
        if stated.get("location") != DATA_NAME or dtype is None or not all(value.isdigit() for value in place):
            raise ArtifactError(f"{path}: {tensor.name} lies in {stated.get('location')!r} as type {tensor.data_type}")
        offset, n_bytes = map(int, place)
        if n_weights * np.dtype(dtype).itemsize != n_bytes or offset + n_bytes > n_file_bytes:
            raise ArtifactError(f"{path}: {tensor.name} takes bytes {offset} to {offset + n_bytes} of {n_file_bytes}")
        yield tensor.name, dtype, offset, n_bytes


def _impossible_numbers(folder: Path, external: list[tuple[str, str, int, int]], on_bytes: OnBytes) -> Iterator[str]:
    """Tensors with NaN or infinity; codes cannot hold any, their scales can."""
    with (folder / DATA_NAME).open("rb", buffering=0) as handle:
        for name, dtype, offset, n_bytes in external:
            if dtype == "uint8":
                on_bytes(n_bytes)
                continue
            for start in range(0, n_bytes, READ_BYTES):
                handle.seek(offset + start)
                data = np.frombuffer(handle.read(min(READ_BYTES, n_bytes - start)), np.dtype(dtype))
                on_bytes(data.nbytes)
                if not np.isfinite(data).all():
                    yield f"{folder / DATA_NAME}: {name} holds NaN or infinity"
                    break


def _against_receipt(folder: Path, receipt: OnnxReceipt, on_bytes: OnBytes) -> list[str]:
    """What differs from the receipt; changed tensors are named, other changed files too."""
    problems = []
    rows = {row.name: row for row in receipt.files}
    found = {path.name for path in folder.iterdir()} - {ONNX_RECEIPT_NAME}
    problems += [f"{folder / name}: missing, the receipt has it" for name in sorted(rows.keys() - found)]
    problems += [f"{folder / name}: not in the receipt" for name in sorted(found - rows.keys())]
    for tensor in receipt.tensors:
        for piece in tensor.pieces:
            try:
                digest = range_sha256(folder / DATA_NAME, piece.offset, piece.n_bytes, on_bytes)
            except ArtifactError as error:
                problems.append(f"{piece.name}: {error}")
                continue
            if digest != piece.sha256:
                where = f"{folder / DATA_NAME}: {piece.name}"
                problems.append(f"{where} has changed since it was written (SHA-256 differs)")
    for name in sorted(rows.keys() & found):
        if name == DATA_NAME and problems:
            continue  # its changed tensors are named above
        if file_sha256(folder / name) != rows[name].sha256:
            problems.append(f"{folder / name}: has changed since it was written (SHA-256 differs)")
    return problems


def _against_source(
    folder: Path, checkpoint: Checkpoint, recipe: str, block: int, device: str
) -> tuple[tuple[Comparison, ...], list[str]]:
    """Each tensor encoded again from the source as it is stored here, and compared."""
    try:
        plan = plan_onnx(match_checkpoint(checkpoint), find_onnx_recipe(recipe), block=block, device=device)
    except MedliteError as error:
        return (), [str(error)]
    if plan.files[GRAPH_FILE].header != (folder / MODEL_NAME).read_bytes():
        return (), [f"{folder / MODEL_NAME}: not the graph that medlite builds for this source"]
    comparisons = tuple(compare_tensors(plan.checkpoint, plan.tensors, (folder / MODEL_NAME, folder / DATA_NAME)))
    return comparisons, wrong_tensors(folder / DATA_NAME, comparisons)


def _against_hashes(folder: Path, checkpoint: Checkpoint, receipt: OnnxReceipt | None) -> Iterator[str]:
    """What differs between the source's files and those that a graph of another exporter was made from."""
    stated = {shard.name: shard.sha256 for shard in receipt.source.shards} if receipt else {}
    if not stated or None in stated.values():
        yield f"{folder}: no receipt names the source's files, and a graph of another exporter is not made again"
        return
    found = {path.name: path for path in checkpoint.shards}
    for name in sorted(stated.keys() | found.keys()):
        if name not in found or stated.get(name) != file_sha256(found[name]):
            yield f"{checkpoint.folder / name}: not the file that {folder.name} was made from"
