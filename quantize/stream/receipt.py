"""The receipt of an artifact: what it was made from, with what, and what each tensor lost. JSON beside or in it.

Anyone can check the artifact against it later, offline (`medlite verify`), and a hospital can sign it.
"""

import hashlib
import math
import platform
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from medlite.errors import ArtifactError
from medlite.files import file_sha256
from medlite.formats.hub_cache import blob_sha256, repository_or_folder, snapshot_at
from medlite.formats.receipt import GGUF_SCHEMA, ONNX_SCHEMA, read_gguf_receipt
from medlite.version import __version__
from quantize.source.checkpoint import Checkpoint
from quantize.source.parity import ParityReport
from quantize.stream.encode import RowErrors
from quantize.stream.plan import Output, Plan, PlannedTensor


def is_current(output: Output) -> bool:
    """True if the GGUF file at the output's path is what it would write from this source, by its receipt and sizes."""
    try:
        receipt = read_gguf_receipt(output.path)
        sizes = [path.stat().st_size for path in output.paths]
    except (ArtifactError, OSError):
        return False
    return (
        receipt.made_by == made_by()
        and receipt.imatrix_sha256 == output.plan.facts["imatrix_sha256"]
        and [file.header_sha256 for file in receipt.files]
        == [hashlib.sha256(file.header).hexdigest() for file in output.plan.files]
        and sizes == [file.n_bytes for file in output.plan.files]
        and [shard.sha256 for shard in receipt.source.shards]
        == [file_sha256(shard) for shard in output.plan.checkpoint.shards]
    )


class SourceHasher:
    """SHA-256 of the source's shards, in one thread beside the conversion. A context manager; leaving it stops it.

    A shard in a hub cache is a link to a blob named by its SHA-256, so it is not read.
    """

    def __init__(self, checkpoint: Checkpoint, *, enabled: bool) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        shards = checkpoint.shards if enabled else []
        self._hashes = {shard: self._pool.submit(self._hash, shard) for shard in shards}

    def _hash(self, shard: Path) -> str:
        return blob_sha256(shard) or file_sha256(shard, self._check_stop)

    def _check_stop(self, n_bytes: int) -> None:
        if self._stop.is_set():
            raise CancelledError

    def result(self) -> dict[Path, str]:
        """Shard -> SHA-256; waits for the last one."""
        return {shard: digest.result() for shard, digest in self._hashes.items()}

    def __enter__(self) -> "SourceHasher":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


def make_receipt(
    plan: Plan,
    files: Mapping[str, tuple[int, str]],
    part_hashes: Sequence[Sequence[str]],
    errors: Mapping[int, Sequence[RowErrors]],
    shard_hashes: Mapping[Path, str],
    parity: ParityReport | None = None,
) -> dict[str, Any]:
    """The receipt of an artifact that was read back whole.

    files: name -> bytes and hash, a folder's companions too. part_hashes: of each tensor's parts, in the plan's order.
    errors: by the tensor's place in the plan, a row a slab; empty if not measured. Hashes are hex SHA-256.
    """
    receipt = {
        "made_by": {**made_by(), **plan.made_by},
        "source": source_facts(plan.checkpoint, shard_hashes),
        "recipe": plan.recipe,
        "architecture": plan.architecture,
        "n_params": plan.n_params,
        "bits_per_weight": round(plan.bits_per_weight, 6),
        "ignored": dict(plan.ignored),
        **plan.facts,
    }
    file_rows = [{"name": name, "n_bytes": n_bytes, "sha256": digest} for name, (n_bytes, digest) in files.items()]
    rows = [
        _tensor_row(tensor, errors.get(i, ()))
        | (_pieces(tensor, hashes) if plan.is_folder else _place(tensor, hashes[0]))
        for i, (tensor, hashes) in enumerate(zip(plan.tensors, part_hashes, strict=True))
    ]
    if plan.is_folder:
        measured = [row for i, slabs in errors.items() if plan.tensors[i].is_parameter for row in slabs]
        own: dict[str, Any] = {"schema": ONNX_SCHEMA, "files": sorted(file_rows, key=lambda row: row["name"])}
    else:
        measured = [row for slabs in errors.values() for row in slabs]
        own = {
            "schema": GGUF_SCHEMA,
            "files": [
                row | {"header_sha256": hashlib.sha256(file.header).hexdigest(), "n_header_bytes": len(file.header)}
                for row, file in zip(file_rows, plan.files, strict=True)
            ],
            "notes": list(plan.notes),
            "tokenizer_check": asdict(parity) if parity else None,
        }
    return {**receipt, **own, "tensors": rows, "total": errors_row(measured)}


def made_by() -> dict[str, str]:
    """The versions that decide the bytes."""
    versions = {name: metadata.version(name) for name in ("llama-cpp-python", "gguf", "numpy")}
    return {"medlite": __version__, **versions, "python": platform.python_version(), "machine": platform.machine()}


def source_facts(checkpoint: Checkpoint, shard_hashes: Mapping[Path, str]) -> dict[str, Any]:
    """The checkpoint: its folder's name, its hub revision where it lies in a hub cache, its files' hashes."""
    snapshot = snapshot_at(checkpoint.folder)
    return {
        "name": repository_or_folder(checkpoint.folder),
        "revision": snapshot.commit if snapshot else None,
        "config_sha256": checkpoint.files.sha256("config.json"),
        "shards": [
            {"name": shard.name, "n_bytes": shard.stat().st_size, "sha256": shard_hashes.get(shard)}
            for shard in checkpoint.shards
        ],
    }


def _tensor_row(tensor: PlannedTensor, errors: Sequence[RowErrors]) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "source": tensor.source.name if tensor.source else None,
        "reason": tensor.reason,
        "shape": list(tensor.shape),
        "n_bytes": tensor.n_bytes,
        **errors_row(errors, tensor.n_weights),
    }


def _place(tensor: PlannedTensor, digest: str) -> dict[str, Any]:
    """What a GGUF file's receipt says of where a tensor stands; the offset is in the file's own header."""
    return {"type": tensor.encoding.name, "file": tensor.parts[0].file, "sha256": digest}


def _pieces(tensor: PlannedTensor, digests: Sequence[str]) -> dict[str, Any]:
    """What a folder's receipt says of it."""
    pieces = [
        {"name": part.name, "offset": part.offset, "n_bytes": part.n_bytes, "sha256": digest}
        for part, digest in zip(tensor.parts, digests, strict=True)
    ]
    return {"storage": tensor.encoding.name, "pieces": pieces}


def errors_row(errors: Sequence[RowErrors], n_weights: int | None = None) -> dict[str, Any]:
    """SQNR in dB (null where there is no error at all); of a tensor of n_weights also RMSE and the worst row."""
    if not errors:
        return {}
    squared_error = math.fsum(row.squared_error for row in errors)
    squared_weight = math.fsum(row.squared_weight for row in errors)
    result: dict[str, Any] = {"sqnr_db": sqnr_db(squared_weight, squared_error)}
    if n_weights is not None:
        worst = max(errors, key=lambda row: row.worst_ratio)
        result["rmse"] = math.sqrt(squared_error / n_weights)
        result["worst_row"] = worst.worst_row
        result["worst_row_sqnr_db"] = sqnr_db(1.0, worst.worst_ratio)
    return result


def sqnr_db(squared_weight: float, squared_error: float) -> float | None:
    """Signal to quantization noise, 10 log10(sum w^2 / sum e^2) in dB; None where nothing was lost."""
    return round(10 * math.log10(squared_weight / squared_error), 4) if squared_error > 0 < squared_weight else None
